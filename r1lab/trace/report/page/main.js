// What is chosen, how it changes (controls, keys, address), and drawing it.

const THEMES = ["auto", "light", "dark"];
const state = { group: 0, filters: "", shade: DATA.shades[0]?.key ?? "none", column: "chosen", theme: "auto" };

/** Changes the choice, draws it, and keeps it in the address, so that a link or a reload shows the same. */
function setState(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", `#${new URLSearchParams(state)}`);
  draw();
}

/** What to show before anything was chosen: the middle of the run, where a change is under way. */
function chooseFirst() {
  const siblings = groupsOfStep(nearestStep(DATA.run.last_step / 2));
  state.group = siblings.find((index) => countMatches(GROUPS[index], "a")) ?? siblings[0];
}

function readAddress() {
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const group = Number(wanted.group);
  if (Number.isInteger(group) && GROUPS[group]) state.group = group;
  if (THEMES.includes(wanted.theme)) state.theme = wanted.theme;
  if (COLUMNS.some(({ key }) => key === wanted.column)) state.column = wanted.column;
  if (wanted.shade === "none" || DATA.shades.some(({ key }) => key === wanted.shade)) state.shade = wanted.shade;
  state.filters = FILTERS.map(({ letter }) => letter).filter((letter) => wanted.filters?.includes(letter)).join("");
}

function draw() {
  document.documentElement.dataset.theme = state.theme;
  byId("theme").textContent = `Theme: ${state.theme}`;
  for (const view of curveViews) view.setStep(GROUPS.length ? GROUPS[state.group].step : DATA.run.last_step);
  if (GROUPS.length) drawExplorer();
}

// ---------------------------------------------------------------------------------------------------- going places

/** Another step, at the same place within it or, with filters, at its first group that has a match. */
function goToStep(step) {
  const place = groupsOfStep(GROUPS[state.group].step).indexOf(state.group);
  const siblings = groupsOfStep(step);
  const same = siblings[Math.min(place, siblings.length - 1)];
  const matching = siblings.filter((index) => countMatches(GROUPS[index], state.filters));
  setState({ group: matching.includes(same) ? same : matching[0] ?? same });
}

function moveStep(by) {
  const index = STEPS.indexOf(GROUPS[state.group].step) + by;
  goToStep(STEPS[Math.min(Math.max(index, 0), STEPS.length - 1)]);
}

function moveGroup(by) {
  const siblings = groupsOfStep(GROUPS[state.group].step);
  const index = siblings.indexOf(state.group) + by;
  setState({ group: siblings[Math.min(Math.max(index, 0), siblings.length - 1)] });
}

/** The next group of the run, forward or back, with a completion that passes the filters. */
function goToMatch(by) {
  for (let index = state.group + by; GROUPS[index]; index += by) {
    if (countMatches(GROUPS[index], state.filters)) return setState({ group: index });
  }
}

/** Opens a completion's group, filters off, and scrolls to the completion. */
function openSample(group, sample) {
  setState({ group, filters: "", column: "chosen" });
  const card = document.querySelector(`.column[data-column="chosen"] [data-sample="${sample}"]`);
  card.classList.add("found");
  card.scrollIntoView({ block: "center" });
}

function toggleFilter(letter) {
  const isOn = state.filters.includes(letter);
  const opposite = { c: "w", w: "c" }[letter];
  const rest = state.filters.replace(letter, "").replace(opposite, "");
  setState({ filters: isOn ? rest : rest + letter });
}

function nextOf(list, item) {
  return list[(list.indexOf(item) + 1) % list.length];
}

// ------------------------------------------------------------------------------------------------------------ keys

const KEYS = {
  ArrowLeft: () => moveStep(-1),
  ArrowRight: () => moveStep(1),
  ArrowUp: () => moveGroup(-1),
  ArrowDown: () => moveGroup(1),
  k: () => moveGroup(-1),
  j: () => moveGroup(1),
  Home: () => goToStep(STEPS[0]),
  End: () => goToStep(STEPS.at(-1)),
  n: () => goToMatch(1),
  p: () => goToMatch(-1),
  a: () => DATA.first_aha && openSample(...DATA.first_aha),
  s: () => setState({ shade: nextOf(["none", ...DATA.shades.map(({ key }) => key)], state.shade) }),
  0: () => setState({ filters: "" }),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.key === "t") return setState({ theme: nextOf(THEMES, state.theme) });
  if (event.key === "?") return byId("help").showModal();
  const filter = FILTERS[Number(event.key) - 1];
  const action = filter ? () => toggleFilter(filter.letter) : KEYS[event.key];
  // A menu keeps its own keys.
  if (!action || !GROUPS.length || event.target.tagName === "SELECT") return;
  event.preventDefault();
  action();
}

// ----------------------------------------------------------------------------------------------------------- start

function describeRun() {
  const run = DATA.run;
  byId("run-name").textContent = run.name;
  const steps = run.max_steps && run.max_steps > run.last_step ? `${run.last_step} of ${run.max_steps}` : run.last_step;
  const shown = run.num_shown < run.num_completions
    ? `${formatCount(run.num_shown)} of ${formatCount(run.num_completions)} completions, evenly over the steps`
    : `all ${formatCount(run.num_completions)} completions`;
  const settings = Object.entries(run.settings).map(([name, value]) => `${name} ${value}`);
  replace(byId("facts"), `${steps} steps · ${shown}`,
    make("details", {}, make("summary", {}, "settings"), settings.join(" · ")));
  replace(byId("notes"), run.notes.map((note) => make("li", {}, note)));
}

function start() {
  describeRun();
  if (GROUPS.length) chooseFirst();
  readAddress();
  drawCurves();
  byId("theme").addEventListener("click", () => setState({ theme: nextOf(THEMES, state.theme) }));
  byId("show-help").addEventListener("click", () => byId("help").showModal());
  document.addEventListener("keydown", onKey);
  if (GROUPS.length) {
    drawFindings();
    buildExplorer();
  } else {
    byId("explorer").hidden = true;
    byId("findings").closest("section").hidden = true;
  }
  draw();
}

start();
