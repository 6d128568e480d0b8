// --- the gallery: order, what is shown, pointer and keys --------------------------------------------------------------

let ordered = [];
let shown = [];
let current = null;  // The card that Tab goes to.

function arrange() {
  const key = settings.sort;
  const sign = settings.down ? -1 : 1;
  const before = ordered;
  ordered = [...cards].sort((one, other) => {
    const [a, b] = [one.keys[key], other.keys[key]];
    if (a === null || b === null) return (a === null) - (b === null) || one.keys.row - other.keys.row;
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return sign * order || one.keys.row - other.keys.row;
  });
  if (ordered.some((card, at) => card !== before[at])) {
    byId("gallery").replaceChildren(...ordered.map((card) => card.element));
  }
}

function fits(card, words) {
  const { sample } = card;
  const { why, status, source } = settings;
  return words.every((word) => card.text.includes(word)) && fitsRule(sample) &&
    (!why || sample.why.includes(why)) && (!status || sample.status === status) && (!source || sample.source === source);
}

function choose() {
  const words = settings.search.toLowerCase().split(/\s+/).filter(Boolean);
  shown = ordered.filter((card) => {
    card.element.hidden = !fits(card, words);
    return !card.element.hidden;
  });
  if (!shown.includes(current)) makeCurrent(shown[0] || null);
  byId("count").textContent = `${shown.length} of ${counted(cards.length, "sample")}${whose()}`;
}

// Of how many rows, and how many of them stand first in the whole data set as they do here.
function whose() {
  if (cards.length === data.rows) return ", the whole data set";
  const all = `, of ${data.rows.toLocaleString("en")} rows`;
  if (shown.length < cards.length) return all;
  const leading = data.leading[`${settings.down ? "-" : ""}${settings.sort}`];
  return leading && leading.count
    ? `${all}; the ${settings.down ? "highest" : "lowest"} ${leading.count} are those of all rows`
    : `${all}; sorted among themselves`;
}

function makeCurrent(card) {
  for (const [one, index] of [[current, -1], [card, 0]]) {
    if (!one) continue;
    one.words.tabIndex = index;
    one.mark.tabIndex = index;
  }
  current = card;
}

function goTo(card) {
  makeCurrent(card);
  card.words.focus({ preventScroll: true });
  // The controls are sticky: what is to be seen must not lie under them.
  card.element.scrollIntoView({ block: "nearest" });
}

function showRow(row) {
  const card = cards.find(({ sample }) => sample.row === row);
  if (!card) return;
  if (!shown.includes(card)) {
    for (const name of ["search", "why", "status", "source", "limit"]) settings[name] = SETTINGS[name][0];
  }
  settings.view = "samples";
  settings.at = String(row);
  draw();
  goTo(card);
}

const tip = byId("tip");
let pointed = null;

function show(span) {
  if (pointed) pointed.classList.remove("at");
  pointed = span;
  tip.hidden = !span;
  if (!span) return;
  span.classList.add("at");
  refreshTip();
  const box = (span.getClientRects()[0] || span.getBoundingClientRect());
  tip.style.left = `${Math.max(4, Math.min(box.left, window.innerWidth - tip.offsetWidth - 8))}px`;
  const under = box.bottom + 6;
  tip.style.top = `${under + tip.offsetHeight > window.innerHeight ? box.top - tip.offsetHeight - 6 : under}px`;
}

function refreshTip() {
  if (!pointed) return;
  const card = cards[pointed.closest(".card").dataset.index];
  const { first, last } = card.spans.find(({ element }) => element === pointed);
  const each = (values) => values.slice(first, last + 1).map((value) => (value === null ? "undefined" : number(value))).join(", ");
  const several = last > first ? `, ${last - first + 1} tokens` : "";
  tip.textContent = `token ${JSON.stringify(card.sample.tokens[last])}${several}\n` +
    `${NOUN} ${each(card.sample.scores)}\nweight ${each(card.weights)}`;
}

function walk(event) {
  const element = event.target.closest(".card");
  if (!element || event.altKey || event.ctrlKey || event.metaKey) return;
  const card = cards[element.dataset.index];
  const next = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (next) {
    event.preventDefault();
    const other = shown[shown.indexOf(card) + next];
    if (other) goTo(other);
    return;
  }
  if (event.key === "m" && event.target !== card.mark) {
    card.mark.checked = !card.mark.checked;
    marksChanged();
    return;
  }
  if (!event.target.closest(".words")) return;
  const { spans, words } = card;
  const at = pointed && words.contains(pointed) ? spans.findIndex(({ element: one }) => one === pointed) : -1;
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
  if (event.key === "Escape") show(null);
  if (!(event.key in steps) || !spans.length) return;
  event.preventDefault();
  const span = spans[Math.min(Math.max(steps[event.key], 0), spans.length - 1)].element;
  span.scrollIntoView({ block: "nearest" });
  show(span);
}

function startGallery() {
  const gallery = byId("gallery");
  gallery.addEventListener("mouseover", (event) => show(event.target.closest(".t")));
  gallery.addEventListener("mouseleave", () => show(null));
  gallery.addEventListener("keydown", walk);
  gallery.addEventListener("focusout", () => show(null));
  gallery.addEventListener("focusin", (event) => {
    const element = event.target.closest(".card");
    if (!element) return;
    makeCurrent(cards[element.dataset.index]);
    settings.at = String(current.sample.row);
    writeAddressSoon();
  });
  gallery.addEventListener("change", marksChanged);
  window.addEventListener("scroll", () => pointed && pointed.matches(":hover") && show(null), { passive: true, capture: true });
}
