// The curves: one small picture a panel, a line at the chosen step.

const CURVE = { width: 380, height: 170, left: 40, right: 10, top: 8, bottom: 22 };
const curveViews = [];

function drawCurves() {
  replace(byId("headline"), DATA.headline.map(drawHeadline));
  const lastStep = DATA.run.last_step;
  for (const panel of DATA.panels) curveViews.push(new CurveView(panel, lastStep));
  replace(byId("curves"), curveViews.map((view) => view.element));
}

function drawHeadline({ label, before, after, is_share: isShare }) {
  return make(
    "div",
    { class: "headline" },
    make("span", { class: "numbers" }, formatValue(before, isShare), make("span", { class: "arrow" }, " → "),
      make("strong", {}, formatValue(after, isShare))),
    make("span", { class: "label" }, label),
  );
}

/** Round numbers from 0 to at least `highest`. */
function ticksUpTo(highest) {
  const rough = (highest || 1) / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const size = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough);
  return Array.from({ length: Math.ceil(highest / size - 1e-9) + 1 }, (_, index) => index * size);
}

/** A line's value at a step: its last point's at or before, unless that is further away than points usually are. */
function valueAt(points, step) {
  const [at, value] = points.findLast(([other]) => other <= step) ?? points[0];
  const spacing = (points.at(-1)[0] - points[0][0]) / Math.max(points.length - 1, 1);
  return Math.abs(step - at) <= 1.5 * Math.max(spacing, 1) ? value : null;
}

class CurveView {
  constructor(panel, lastStep) {
    this.panel = panel;
    this.lastStep = Math.max(lastStep, 1);
    const values = panel.lines.flatMap((line) => line.points.map(([, value]) => value));
    this.ticks = panel.is_share ? [0, 0.25, 0.5, 0.75, 1] : ticksUpTo(Math.max(...values, 0));
    this.lowest = Math.min(...values, 0);
    this.marker = makeSvg("line", { class: "marker", y1: CURVE.top, y2: CURVE.height - CURVE.bottom });
    this.values = panel.lines.map(() => make("b"));
    this.element = make("figure", { class: "curve" }, this.drawCaption(), this.drawPicture());
  }

  x(step) {
    return CURVE.left + (step / this.lastStep) * (CURVE.width - CURVE.left - CURVE.right);
  }

  y(value) {
    const share = (value - this.lowest) / (this.ticks.at(-1) - this.lowest);
    return CURVE.height - CURVE.bottom - share * (CURVE.height - CURVE.top - CURVE.bottom);
  }

  drawCaption() {
    const names = this.panel.lines.map((line, index) =>
      make("li", {}, make("i", { class: `line-${index % 5}` }), `${line.name} `, this.values[index]));
    return make("figcaption", {}, make("strong", {}, this.panel.title), ` ${this.panel.unit}`, make("ul", {}, names));
  }

  drawPicture() {
    const lines = this.panel.lines.map((line, index) =>
      makeSvg("polyline", {
        class: `line-${index % 5}`,
        points: line.points.map(([step, value]) => `${this.x(step).toFixed(1)},${this.y(value).toFixed(1)}`).join(" "),
      }));
    return makeSvg(
      "svg",
      {
        viewBox: `0 0 ${CURVE.width} ${CURVE.height}`,
        role: "img",
        "aria-label": `${this.panel.title} over steps`,
        onclick: (event) => this.choose(event),
        onpointermove: (event) => this.show(this.stepAt(event)),
        onpointerleave: () => this.show(this.step),
      },
      this.ticks.map((tick) => this.drawTick(tick)),
      [0, Math.round(this.lastStep / 2), this.lastStep].map((step, index) =>
        makeSvg("text", { x: this.x(step), y: CURVE.height - 6, class: ["start", "middle", "end"][index] },
          index === 2 ? `step ${step}` : String(step))),
      this.marker,
      lines,
    );
  }

  drawTick(tick) {
    const label = this.panel.is_share ? `${100 * tick}%` : String(Number(tick.toPrecision(3)));
    const y = this.y(tick);
    return [
      makeSvg("line", { class: "grid", x1: CURVE.left, x2: CURVE.width - CURVE.right, y1: y, y2: y }),
      makeSvg("text", { x: CURVE.left - 6, y: y + 4, class: "end" }, label),
    ];
  }

  stepAt(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * CURVE.width;
    const share = (x - CURVE.left) / (CURVE.width - CURVE.left - CURVE.right);
    return Math.round(Math.min(Math.max(share, 0), 1) * this.lastStep);
  }

  choose(event) {
    if (STEPS.length) goToStep(nearestStep(this.stepAt(event)));
  }

  /** Values at a step, in the caption. */
  show(step) {
    this.marker.setAttribute("x1", this.x(step));
    this.marker.setAttribute("x2", this.x(step));
    this.panel.lines.forEach((line, index) => {
      this.values[index].textContent = formatValue(valueAt(line.points, step), this.panel.is_share);
    });
  }

  setStep(step) {
    this.step = step;
    this.show(step);
  }
}
