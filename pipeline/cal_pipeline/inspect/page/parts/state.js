// --- what the page shows, kept in the address so that a reload or a link shows it again -------------------------------

const data = JSON.parse(document.getElementById("data").textContent);

const NUMBER = (value) => (value.trim() !== "" && Number.isFinite(Number(value)) ? Number(value) : undefined);
const within = (low, high) => (value) => {
  const number = NUMBER(value);
  return number === undefined ? undefined : Math.min(Math.max(number, low), high);
};
const oneOf = (...names) => (value) => (names.includes(value) ? value : undefined);
const SWITCH = (value) => ({ 0: false, 1: true })[value];
const TEXT = (value) => value;
const WINDOWS = [...new Set([1, 3, 5, 7, data.window])].sort((a, b) => a - b);
const THEMES = ["system", "light", "dark"];
const NOUN = data.score.noun;
const [MIN, MEAN, MAX] = ["min", "mean", "max"].map((part) => `${part}_${NOUN}`);
const RULES = { [MIN]: `lowest ${NOUN}`, [MEAN]: `mean ${NOUN}`, [MAX]: `highest ${NOUN}`,
  share_negative: "share below 0", tokens: "number of tokens" };

// Name -> [what it is at first, how it is read from the address: undefined is no value].
const SETTINGS = {
  view: ["samples", oneOf("samples", "overview", "measurement")],
  sort: ["min", oneOf("min", "mean", "negative", "weight", "max", "length", "row", "id")],
  down: [false, SWITCH],
  search: ["", TEXT],
  shade: ["score", oneOf("score", "weight")],
  // Of another map than clamp the weights are those that were written: no slider moves them.
  alpha: [data.alpha, data.live ? within(0, data.sliderMax) : () => undefined],
  beta: [data.beta, data.live ? within(0, data.sliderMax) : () => undefined],
  window: [data.window, (value) => (data.live ? WINDOWS.find((width) => String(width) === value) : undefined)],
  why: ["", oneOf("", "word", "lowest", "highest", "random", "failed")],
  status: ["", TEXT],
  source: ["", TEXT],
  rule: [MIN, oneOf(...Object.keys(RULES))],
  side: ["below", oneOf("below", "above")],
  limit: ["", (value) => (NUMBER(value) === undefined ? undefined : value.trim())],
  use: ["ids", oneOf("ids", "drop", "keep")],
  log: [false, SWITCH],
  theme: ["system", oneOf(...THEMES)],
  at: ["", (value) => (/^\d+$/.test(value) ? value : undefined)],
  marks: ["", (value) => (/^\d+(\.\d+)*$/.test(value) ? value : undefined)],
};

const settings = {};

function readAddress() {
  const given = new URLSearchParams(window.location.hash.slice(1));
  for (const [name, [first, read]] of Object.entries(SETTINGS)) {
    const value = given.has(name) ? read(given.get(name)) : undefined;
    settings[name] = value === undefined ? first : value;
  }
  if (settings.alpha > settings.beta) [settings.alpha, settings.beta] = [data.alpha, data.beta];
}

function address() {
  const given = new URLSearchParams();
  for (const [name, [first]] of Object.entries(SETTINGS)) {
    const value = settings[name];
    if (value !== first) given.set(name, typeof value === "boolean" ? String(Number(value)) : String(value));
  }
  return String(given);
}

// Not at every step of a slider: browsers refuse what changes the address too often.
let pending = 0;
function writeAddress() {
  clearTimeout(pending);
  pending = 0;
  const hash = address();
  if (hash === window.location.hash.slice(1)) return;
  window.history.replaceState(null, "", hash ? `#${hash}` : window.location.pathname + window.location.search);
}
function writeAddressSoon() {
  clearTimeout(pending);
  pending = setTimeout(writeAddress, 150);
}
