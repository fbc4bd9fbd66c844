// Making elements. Text goes in as text nodes only: nothing of the data is ever parsed as markup.

const byId = (id) => document.getElementById(id);

/** An element with attributes (`on...`: a listener; false, null: left out) and children (elements or text). */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== false));
  return element;
}

function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null));
}

function formatShare(value) {
  return value === null ? "–" : `${(100 * value).toFixed(value > 0 && value < 0.0995 ? 1 : 0)} %`;
}

function formatNumber(value) {
  if (value === null || value === undefined) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits).replace("-", "−");
}

const formatValue = (value, isShare) => (isShare ? formatShare(value) : formatNumber(value));
const formatSigned = (value) => (value > 0 ? "+" : "") + formatNumber(value);
const formatCount = (value) => value.toLocaleString("en");
