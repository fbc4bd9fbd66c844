// The run's data, and what can be asked of it. See build.py for its shape.

const DATA = JSON.parse(document.getElementById("data").textContent);
const GROUPS = DATA.groups;
const STEPS = [...new Set(GROUPS.map((group) => group.step))];
const FILTERS = Object.entries(DATA.flags).map(([letter, label]) => ({ letter, label }));
const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const TOP_LEVEL = ALPHABET.length - 1;

/** Where each token of a completion ends in its text (shading.py, encode_lengths). */
function decodeEnds(lengths) {
  const ends = [];
  let position = 0;
  for (const letter of lengths) {
    position += ALPHABET.indexOf(letter);
    if (letter !== "/") ends.push(position);
  }
  return ends;
}

/** The value behind a level from 0 to TOP_LEVEL (shading.py, encode_levels). */
function valueOfLevel(level, shade) {
  return (level / TOP_LEVEL) ** 2 * shade.largest;
}

/** The indices of a step's groups. */
function groupsOfStep(step) {
  return GROUPS.flatMap((group, index) => (group.step === step ? [index] : []));
}

/** The step with completions that is nearest to any step. */
function nearestStep(step) {
  return STEPS.reduce((best, other) => (Math.abs(other - step) < Math.abs(best - step) ? other : best), STEPS[0]);
}

/** Whether completion `sample` of a group has every property in `letters`. */
function passes(group, sample, letters) {
  return [...letters].every((letter) => group.flags[sample].includes(letter));
}

function countMatches(group, letters) {
  return group.flags.filter((_, sample) => passes(group, sample, letters)).length;
}

/** How many completions of several groups, given by index, pass. */
function totalMatches(indices, letters) {
  return indices.reduce((sum, index) => sum + countMatches(GROUPS[index], letters), 0);
}

/** A group's completions, best reward first. */
function samplesByReward(group) {
  const reward = (sample) => group.reward[sample] ?? -Infinity;
  return group.texts.map((_, sample) => sample).sort((a, b) => reward(b) - reward(a) || a - b);
}

/** A prompt as text; chat messages are stored as JSON. */
function promptText(group) {
  if (!group.prompt.startsWith("[{")) return group.prompt;
  try {
    return JSON.parse(group.prompt).map((message) => `${message.role}: ${message.content}`).join("\n\n");
  } catch {
    return group.prompt;
  }
}
