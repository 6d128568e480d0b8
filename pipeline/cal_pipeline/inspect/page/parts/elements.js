// --- elements and numbers -----------------------------------------------------------------------------------------

// Text of the dataset only ever becomes text nodes and attribute values, never markup.
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const FOR = data.colours.for.join(", ");
const AGAINST = data.colours.against.join(", ");
document.documentElement.style.setProperty("--for", FOR);
document.documentElement.style.setProperty("--against", AGAINST);

function make(name, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function mean(values) {
  return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
}

const absent = (value) => value === null || value === undefined;
const number = (value, digits = 3) => (absent(value) ? "–" : value.toFixed(digits));
const share = (value) => (absent(value) ? "–" : `${(100 * value).toFixed(1)}%`);
const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
