// The explorer: the chosen group between its counterparts of the start and the end of the run.

const COLUMNS = [
  { key: "first", label: "Start" },
  { key: "chosen", label: "Chosen step" },
  { key: "last", label: "End" },
];

function buildExplorer() {
  byId("step").max = STEPS.length - 1;
  byId("step").addEventListener("input", (event) => goToStep(STEPS[event.target.value]));
  byId("group").addEventListener("change", (event) => setState({ group: Number(event.target.value) }));
  byId("shade").addEventListener("change", (event) => setState({ shade: event.target.value }));
  byId("previous-match").addEventListener("click", () => goToMatch(-1));
  byId("next-match").addEventListener("click", () => goToMatch(1));
  const options = [{ key: "none", label: "nothing" }, ...DATA.shades];
  replace(byId("shade"), options.map(({ key, label }) => make("option", { value: key }, label)));
  replace(byId("tabs"), COLUMNS.map(({ key, label }) =>
    make("button", { type: "button", "data-column": key, onclick: () => setState({ column: key }) }, label)));
  replace(byId("filters"), FILTERS.map(({ letter, label }, index) =>
    make("button", { type: "button", class: "filter", "data-letter": letter, title: `key ${index + 1}`,
      onclick: () => toggleFilter(letter) }, `${label} `, make("small"))));
}

function drawExplorer() {
  const group = GROUPS[state.group];
  const shade = DATA.shades.find(({ key }) => key === state.shade) ?? null;
  drawControls(group);
  replace(byId("legend"), drawLegend(shade));
  const { first, last } = DATA.neighbours[state.group];
  const shown = { first, chosen: state.group, last };
  byId("columns").dataset.column = state.column;
  replace(byId("columns"), COLUMNS.map((column) => drawColumn(column, shown[column.key], shade)));
}

function drawControls(group) {
  const siblings = groupsOfStep(group.step);
  byId("step").value = STEPS.indexOf(group.step);
  byId("step").setAttribute("aria-valuetext", `step ${group.step}`);
  byId("step-label").textContent = `${group.step} of ${DATA.run.last_step}`;
  byId("group-label").textContent = `${siblings.indexOf(state.group) + 1} of ${siblings.length} at this step`;
  replace(byId("group"), siblings.map((index) =>
    make("option", { value: index, selected: index === state.group }, describeOption(GROUPS[index]))));
  byId("shade").value = state.shade;
  for (const button of byId("filters").children) {
    const letter = button.dataset.letter;
    button.setAttribute("aria-pressed", state.filters.includes(letter));
    button.querySelector("small").textContent = totalMatches(siblings, letter);
  }
  for (const tab of byId("tabs").children) tab.setAttribute("aria-pressed", tab.dataset.column === state.column);
  drawMatchCount(siblings);
}

function drawMatchCount(siblings) {
  const here = totalMatches(siblings, state.filters);
  byId("match-count").textContent = state.filters
    ? `${here} at this step, ${formatCount(totalMatches([...GROUPS.keys()], state.filters))} in all`
    : `${here} completions at this step`;
}

function describeOption(group) {
  const text = promptText(group).replace(/\s+/g, " ");
  const right = DATA.accuracy ? ` · ${countMatches(group, "c")}/${group.texts.length} right` : "";
  return (text.length > 90 ? `${text.slice(0, 90)}…` : text) + right;
}

function drawColumn({ key, label }, index, shade) {
  const group = GROUPS[index];
  const samples = samplesByReward(group).filter((sample) => passes(group, sample, state.filters));
  const hidden = group.texts.length - samples.length;
  return make(
    "section",
    { class: "column", "data-column": key, "aria-label": `${label}, step ${group.step}` },
    make("header", {},
      make("h3", {}, `${label} `, make("span", {}, describeStep(group, key))),
      make("p", { class: "prompt" }, promptText(group)),
      make("p", { class: "relation" }, describeRelation(key, index),
        key !== "chosen" && index !== state.group &&
          make("button", { type: "button", class: "plain", onclick: () => setState({ group: index }) }, "choose it")),
      make("p", { class: "stats" }, describeGroup(group))),
    samples.map((sample) => drawCompletion(group, sample, shade)),
    hidden > 0 && make("p", { class: "hidden" }, `${hidden} of ${group.texts.length} hidden by the filters`),
  );
}

function describeStep(group, key) {
  const isBase = key === "first" && group.step <= 1;
  return `step ${group.step}${isBase ? " · the base policy" : ""}`;
}

function describeRelation(key, index) {
  if (key === "chosen") return "your choice";
  if (index === state.group) return "the chosen group itself ";
  return GROUPS[index].prompt === GROUPS[state.group].prompt ? "the same prompt " : "the most similar prompt ";
}

function describeGroup(group) {
  const mean = (values) => values.reduce((sum, value) => sum + (value ?? 0), 0) / values.length;
  const right = DATA.accuracy ? `${countMatches(group, "c")} of ${group.texts.length} right · ` : "";
  return `${right}${countMatches(group, "f")} reflect · mean reward ${formatNumber(mean(group.reward))} · ` +
    `mean length ${mean(group.num_tokens).toFixed(0)}`;
}
