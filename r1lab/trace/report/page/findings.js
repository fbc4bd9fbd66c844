// The two cards above the explorer: the first aha, and the suspects.

function drawFindings() {
  replace(byId("first-aha"), make("h3", {}, "First aha"), drawFirstAha());
  replace(byId("suspects"), make("h3", {}, "Reward-hacking suspects"), drawSuspects());
}

function drawFirstAha() {
  if (!DATA.first_aha) {
    return make("p", { class: "lead" }, "None found. An aha needs a try with its check (“… off 3”), a word of " +
      "reconsideration, and a right answer in the end; texts of other tasks have no such tries to find.");
  }
  const [index, sample] = DATA.first_aha;
  const group = GROUPS[index];
  const isBase = group.step <= 1;
  return [
    make("p", { class: "lead" },
      `Step ${group.step}${isBase ? ", sampled from the base policy itself" : ""}. `,
      "The first completion whose first try is wrong, which reconsiders, and ends right. ",
      isBase && "So training amplifies a habit that the base has, rather than inventing it."),
    make("p", { class: "prompt" }, promptText(group)),
    drawCompletion(group, sample, null),
    make("p", { class: "lead" }, countEvents(), " ",
      make("button", { type: "button", onclick: () => openSample(index, sample) }, "Show its group")),
  ];
}

function countEvents() {
  const count = (letter) => totalMatches([...GROUPS.keys()], letter);
  return `Among the ${formatCount(DATA.run.num_shown)} completions here: ${formatCount(count("a"))} with an aha, ` +
    `${formatCount(count("i"))} where a hit was reconsidered and turned wrong.`;
}

function drawSuspects() {
  if (!DATA.suspects.length) {
    return make("p", { class: "lead" }, "None: no completion with a high reward has an odd shape.");
  }
  return [
    make("p", { class: "lead" }, "High reward, odd shape. Worst first; most are luck, but read them."),
    make("ol", { class: "suspects" }, DATA.suspects.map(drawSuspect)),
  ];
}

function drawSuspect({ at: [index, sample], reasons }) {
  const group = GROUPS[index];
  return make("li", {},
    make("button", { type: "button", class: "link", onclick: () => openSample(index, sample) },
      make("span", { class: "where" }, `step ${group.step} · reward ${formatNumber(group.reward[sample])}`),
      make("span", { class: "reasons" }, reasons.join("; ")),
      make("code", {}, tail(group.texts[sample]))));
}

/** The end of a text, where its answer is. */
function tail(text, length = 110) {
  const flat = text.replace(/\s+/g, " ").trim();
  return flat.length > length ? `… ${flat.slice(-length)}` : flat;
}
