// One completion: what it earned, and its text with shaded tokens and marked spans.

const NUM_SHADES = 8;
const MARK_TITLES = {
  f: "reflection",
  a: "aha: reconsidered here, right in the end",
  i: "inverse: reconsidered here though it had hit, wrong in the end",
  t: "the try that was reconsidered",
};
const BADGES = { a: "aha", i: "inverse", t: "truncated", d: "rewards disagree" };

/** A completion as a card. */
function drawCompletion(group, sample, shade) {
  return make(
    "article",
    { class: "completion", "data-sample": sample },
    drawVerdict(group, sample),
    drawText(group, sample, shade),
  );
}

function drawVerdict(group, sample) {
  const flags = group.flags[sample];
  const verdict = flags.includes("c") ? ["right", "✓ right"] : flags.includes("w") ? ["wrong", "✗ wrong"] : null;
  const advantage = group.advantage[sample];
  const sign = advantage > 0 ? "▲" : advantage < 0 ? "▼" : "";
  const parts = DATA.rewards.map((name, index) => `${name}: ${formatNumber(group.rewards[sample][index])}`);
  return make(
    "header",
    {},
    verdict && make("span", { class: `verdict ${verdict[0]}` }, verdict[1]),
    make("span", { title: parts.join("\n") }, "reward ", make("b", {}, formatNumber(group.reward[sample]))),
    make("span", { title: "advantage: above (▲) or below (▼) its group" }, "adv. ",
      make("b", {}, `${sign} ${formatSigned(advantage)}`)),
    make("span", {}, `${group.num_tokens[sample]} tokens`),
    Object.keys(BADGES).filter((letter) => flags.includes(letter)).map((letter) =>
      make("span", { class: `badge badge-${letter}` }, BADGES[letter])),
  );
}

/** The text, cut where a token or a mark begins or ends. */
function drawText(group, sample, shade) {
  const text = group.texts[sample];
  const marks = group.marks[sample];
  const tokens = shade ? readTokens(group, sample, shade) : [];
  const cuts = new Set([0, text.length]);
  for (const token of tokens) cuts.add(token.end);
  for (const [start, end] of marks) cuts.add(start).add(end);
  const positions = [...cuts].sort((a, b) => a - b);
  const pieces = [];
  let token = 0;
  for (let index = 0; index + 1 < positions.length; index++) {
    const [start, end] = [positions[index], positions[index + 1]];
    while (token < tokens.length && tokens[token].end <= start) token++;
    pieces.push(drawPiece(text.slice(start, end), tokens[token], marksAt(marks, start), shade));
  }
  return make("p", { class: "text", dir: "auto" }, pieces.length ? pieces : make("i", {}, "(empty)"));
}

/** A completion's tokens: [{end, level}]; none where its shade was not recorded. */
function readTokens(group, sample, shade) {
  const levels = group[shade.key]?.[sample];
  if (!levels) return [];
  return decodeEnds(group.lengths[sample]).map((end, index) => ({ end, level: ALPHABET.indexOf(levels[index]) }));
}

function marksAt(marks, position) {
  return marks.filter(([start, end]) => start <= position && position < end);
}

function drawPiece(text, token, marks, shade) {
  if (!token && !marks.length) return text;
  const classes = marks.map(([, , kind]) => `mark-${kind}`);
  const titles = marks.map(([, , kind]) => MARK_TITLES[kind]);
  if (token) {
    classes.push(`level-${shadeClass(token.level)}`);
    titles.push(describeLevel(token.level, shade));
  }
  return make("span", { class: classes.join(" "), title: titles.join("\n") }, text);
}

const shadeClass = (level) => Math.round((level / TOP_LEVEL) * (NUM_SHADES - 1));

function describeLevel(level, shade) {
  const value = valueOfLevel(level, shade);
  if (shade.key !== "logp") return `${value.toPrecision(2)} nats`;
  const probability = Math.exp(-value);
  const bound = level === TOP_LEVEL ? "at most " : "";
  return `logp ${bound}−${value.toFixed(2)}: probability ${bound}${probability.toPrecision(2)}`;
}

/** What the colours mean, for the shade in use. */
function drawLegend(shade) {
  const entry = (kind, example, label) =>
    make("span", {}, make("span", { class: `mark-${kind}` }, example), ` ${label}`);
  const marks = [
    entry("f", "wait", "reflection"),
    entry("a", "wait", "aha"),
    entry("i", "wait", "inverse"),
    entry("t", "3 + 5 = 8 off 2", "the try it gives up"),
  ];
  if (!shade) return marks;
  const swatches = Array.from({ length: NUM_SHADES }, (_, index) => make("i", { class: `swatch level-${index}` }));
  const ends = shade.key === "logp" ? ["sure", "surprising"] : ["0", `${shade.largest.toPrecision(2)} nats`];
  return [make("span", {}, `${ends[0]} `, swatches, ` ${ends[1]}`), marks];
}
