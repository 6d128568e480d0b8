"use strict";
// Draws the page from its data. Text of the dataset only ever becomes text nodes and attribute values, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const settings = { alpha: data.alpha, beta: data.beta, window: data.window, shade: "weight", sort: "row", down: false };
  const LEVELS = 64;
  const OPACITY = 0.65;
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

  // --- the method ---------------------------------------------------------------------------------------------------

  // Mean of the clamped, defined deltas within the window and within the token's contiguous span; an undefined delta
  // weighs alpha and is left out of its neighbours' mean: token_weights with pool "span".
  function weights(sample, { alpha, beta, window: width }) {
    const { deltas, spans } = sample;
    const half = (width - 1) / 2;
    const clamped = deltas.map((delta) => (delta === null ? null : Math.min(Math.max(delta, alpha), beta)));
    const found = new Array(deltas.length);
    spans.forEach((start, number) => {
      const stop = number + 1 < spans.length ? spans[number + 1] : deltas.length;
      for (let token = start; token < stop; token++) {
        let total = 0;
        let count = 0;
        for (let near = Math.max(start, token - half); near < Math.min(stop, token + half + 1); near++) {
          if (clamped[near] !== null) {
            total += clamped[near];
            count++;
          }
        }
        found[token] = clamped[token] === null ? alpha : total / count;
      }
    });
    return found;
  }

  function mean(values) {
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
  }

  function checkAgainstPython() {
    for (const sample of data.samples) {
      const mine = weights(sample, data);
      if (mine.some((weight, token) => !(Math.abs(weight - sample.weights[token]) <= 1e-3))) {
        byId("banner").textContent = `The weights of ${sample.id} computed here are not those that were written.`;
        byId("banner").hidden = false;
        return;
      }
    }
  }

  // --- summary and plots --------------------------------------------------------------------------------------------

  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : value.toFixed(digits));
  const share = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}%`);

  function drawSummary() {
    for (const [name, value] of data.facts) {
      byId("summary").append(make("div", {}, make("dt", { text: name }), make("dd", { text: value })));
    }
    for (const [name, value] of data.settings) {
      byId("settings").append(make("dt", { text: name }), make("dd", { text: value }));
    }
  }

  function svg(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const PLOT = { width: 420, height: 190, left: 44, right: 12, top: 20, bottom: 32 };

  function figure(title, label, low, high, top, ticks) {
    const { width, height, left, right, top: upper, bottom } = PLOT;
    const x = (value) => left + ((value - low) / (high - low || 1)) * (width - left - right);
    const y = (value) => height - bottom - (value / (top || 1)) * (height - bottom - upper);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    drawing.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: y(0), y2: y(0) }));
    for (const tick of ticks) {
      drawing.append(svg("text", { x: x(tick), y: height - 19, "text-anchor": "middle" }, String(tick)));
    }
    drawing.append(svg("text", { x: width - right, y: height - 4, "text-anchor": "end" }, label));
    byId("plots").append(make("figure", {}, drawing, make("figcaption", { text: title })));
    return { drawing, x, y };
  }

  function ticksBetween(low, high) {
    const step = [0.5, 1, 2, 5, 10, 20, 50, 100].find((size) => (high - low) / size <= 8) || (high - low) / 8;
    const ticks = [];
    for (let tick = Math.ceil(low / step) * step; tick <= high; tick += step) ticks.push(Number(tick.toFixed(6)));
    return ticks;
  }

  const bounds = [];

  function markBounds({ drawing, x }, low, high) {
    for (const name of ["alpha", "beta"]) {
      const line = svg("line", { class: "bound", y1: PLOT.top - 4, y2: PLOT.height - PLOT.bottom });
      const text = svg("text", { class: "name", y: 11, "text-anchor": "middle" }, name);
      drawing.append(line, text);
      bounds.push(() => {
        const at = x(Math.min(Math.max(settings[name], low), high));
        line.setAttribute("x1", at);
        line.setAttribute("x2", at);
        text.setAttribute("x", at);
      });
    }
  }

  function drawPlots() {
    const { edges, counts } = data.histogram;
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (!total) return;
    const [low, high] = [edges[0], edges[edges.length - 1]];
    const ticks = ticksBetween(low, high);
    const most = Math.max(...counts);
    const bars = figure("Share of tokens in each bin; the outermost are in the end bins", "delta (logits)", low, high, most, ticks);
    bars.drawing.append(svg("text", { x: 4, y: bars.y(most) + 4 }, share(most / total)));
    bars.drawing.append(svg("text", { x: PLOT.left, y: PLOT.height - 4 }, "\u2190 the image speaks against, for \u2192"));
    bars.drawing.append(...histogram(bars, edges, counts));
    markBounds(bars, low, high);
    drawWeights();
    const rising = figure("Share of tokens at or below a delta", "delta (logits)", low, high, 1, ticks);
    for (const part of [0.5, 1]) rising.drawing.append(svg("text", { x: 4, y: rising.y(part) + 4 }, `${100 * part}%`));
    let below = 0;
    const points = counts.map((count, bin) => `${rising.x(edges[bin + 1])},${rising.y((below += count) / total)}`);
    rising.drawing.append(svg("polyline", { class: "curve", points: points.join(" ") }));
    markBounds(rising, low, high);
    drawTurns();
  }

  function histogram({ x, y }, edges, counts) {
    return counts.map((count, bin) => {
      const [from, to] = [x(edges[bin]), x(edges[bin + 1])];
      return svg("rect", { class: edges[bin] < 0 ? "bar against" : "bar", x: from, width: Math.max(to - from - 0.5, 0.5),
        y: y(count), height: y(0) - y(count) });
    });
  }

  const WEIGHT_BINS = 40;

  // Of the samples on this page, the others' tokens are not here: drawn anew whenever a bound or the window moves.
  function drawWeights() {
    const shown = data.samples.filter((sample) => sample.tokens.length).length;
    if (!shown) return;
    const plot = figure(`Weights of the ${shown} measured samples on this page, at the alpha, beta and window below`, "weight", 0, 1, 1, []);
    const drawn = svg("g", { id: "weights" });
    plot.drawing.append(drawn);
    bounds.push(() => {
      const { alpha, beta } = settings;
      const high = beta > alpha ? beta : alpha + 1;
      const counts = new Array(WEIGHT_BINS).fill(0);
      for (const card of cards) {
        card.weights.forEach((weight, token) => {
          if (card.sample.deltas[token] === null) return;
          const bin = Math.floor(((weight - alpha) / (high - alpha)) * WEIGHT_BINS);
          counts[Math.min(Math.max(bin, 0), WEIGHT_BINS - 1)]++;
        });
      }
      const total = counts.reduce((sum, count) => sum + count, 0);
      const most = Math.max(...counts);
      const edges = Array.from({ length: WEIGHT_BINS + 1 }, (_, edge) => edge / WEIGHT_BINS);
      const label = (at, text) => svg("text", { x: plot.x(at), y: PLOT.height - 19, "text-anchor": "middle" }, text);
      drawn.replaceChildren(
        ...histogram(plot, edges, counts.map((count) => count / (most || 1))),
        svg("text", { x: 4, y: plot.y(1) + 4 }, share(total ? most / total : null)),
        ...[0, 0.25, 0.5, 0.75, 1].map((at) => label(at, number(alpha + at * (high - alpha), 2))),
      );
    });
  }

  function drawTurns() {
    const turns = data.turns.filter((turn) => turn.mean !== null);
    if (turns.length < 2) return;
    const top = Math.max(...turns.map((turn) => Math.max(turn.mean, 0)), 0.001);
    const plot = figure("Mean delta by answer of the conversation (below 0 not drawn)", "answer", 0.5, turns.length + 0.5,
      top, []);
    plot.drawing.append(svg("text", { x: 4, y: plot.y(top) + 4 }, number(top, 2)));
    turns.forEach((turn, at) => {
      const bar = { class: "bar", x: plot.x(at + 0.65), width: plot.x(1.7) - plot.x(1), y: plot.y(Math.max(turn.mean, 0)) };
      plot.drawing.append(svg("rect", { ...bar, height: plot.y(0) - bar.y }));
      plot.drawing.append(svg("text", { x: plot.x(at + 1), y: PLOT.height - 19, "text-anchor": "middle" }, turn.name));
    });
  }

  // --- the gallery --------------------------------------------------------------------------------------------------

  const cards = data.samples.map((sample, index) => {
    const spans = [];
    const element = make("article", { class: "card", "data-index": index, "aria-label": `sample ${sample.id}` });
    const images = make("div", {});
    sample.images.forEach((image, at) => {
      if (image.uri) {
        const alt = `image ${at + 1} of sample ${sample.id}`;
        images.append(make("img", { src: image.uri, alt, loading: "lazy", decoding: "async" }));
      } else {
        images.append(make("p", { class: "missing", text: image.problem }));
      }
    });
    if (!sample.images.length) images.append(make("p", { class: "missing", text: "no image" }));
    const facts = make("p", { class: "facts" });
    const words = make("div", { class: "words" });
    const body = make("div", {}, make("h3", { text: sample.id, dir: "auto" }), facts, words);
    if (sample.status !== "ok") {
      body.append(make("p", { class: "failed", text: `${sample.status}: ${sample.error || ""}`, dir: "auto" }));
    }
    if (sample.tokens.length) {
      words.tabIndex = 0;
      words.setAttribute("role", "group");
      words.setAttribute("aria-label", `words of ${sample.id}; arrow keys go from token to token`);
    }
    for (const turn of sample.turns) {
      // A direction of its own for what was said: the role before it is always English.
      const said = make("bdi");
      const line = make("p", { class: turn.text === undefined ? "turn" : "turn other" });
      line.append(make("b", { text: turn.role }), said);
      if (turn.text !== undefined) {
        said.append(turn.text);
      } else {
        // Tokens that spell one character together share its span: all but the last have no text of their own.
        for (let first = turn.from, last; first < turn.to; first = last + 1) {
          for (last = first; last + 1 < turn.to && sample.tokens[last] === "";) last++;
          const kind = (sample.special.includes(last) ? " special" : "") +
            (sample.deltas.slice(first, last + 1).every((delta) => delta === null) ? " undefined" : "");
          const span = make("span", { class: `t${kind}`, "data-token": first, text: sample.tokens[last] });
          spans.push({ element: span, first, last });
          said.append(span);
        }
      }
      words.append(line);
    }
    element.append(images, body);
    const defined = sample.deltas.filter((delta) => delta !== null);
    const text = [sample.id, `#${sample.row}`, sample.status, sample.error || "", ...sample.turns.map((turn) =>
      turn.text === undefined ? sample.tokens.slice(turn.from, turn.to).join("") : turn.text)].join("\n").toLowerCase();
    return {
      element, facts, words, spans, sample, text,
      levels: new Int16Array(spans.length).fill(-1000),
      weights: [],
      keys: {
        row: index,
        id: sample.id,
        length: sample.tokens.length,
        mean: mean(defined),
        min: defined.length ? Math.min(...defined) : null,
        max: defined.length ? Math.max(...defined) : null,
        negative: defined.length ? defined.filter((delta) => delta < 0).length / defined.length : null,
        weight: null,
      },
    };
  });

  function colour(level) {
    if (level === 0) return "";
    const opacity = ((Math.abs(level) / LEVELS) * OPACITY).toFixed(3);
    return `rgba(${level > 0 ? FOR : AGAINST}, ${opacity})`;
  }
  const palette = new Map();
  for (let level = -LEVELS; level <= LEVELS; level++) palette.set(level, colour(level));

  function level(delta, weight) {
    const { alpha, beta, shade } = settings;
    const part = shade === "weight" ? (beta > alpha ? (weight - alpha) / (beta - alpha) : 0) : (delta || 0) / (beta || 1);
    return Math.round(Math.min(Math.max(part, -1), 1) * LEVELS);
  }

  function recolour() {
    for (const card of cards) {
      card.weights = weights(card.sample, settings);
      card.keys.weight = mean(card.weights.filter((_, token) => card.sample.deltas[token] !== null));
      card.spans.forEach(({ element, first, last }, at) => {
        let now = 0;  // The most extreme of the tokens.
        for (let token = first; token <= last; token++) {
          const one = level(card.sample.deltas[token], card.weights[token]);
          if (Math.abs(one) > Math.abs(now)) now = one;
        }
        if (now !== card.levels[at]) {
          card.levels[at] = now;
          element.style.backgroundColor = palette.get(now);
        }
      });
      const { length, mean: meanDelta, negative, weight } = card.keys;
      card.facts.textContent = length
        ? `#${card.sample.row} · ${length} tokens · mean delta ${number(meanDelta, 2)} · below 0: ${share(negative)} · mean weight ${number(weight, 2)}`
        : `#${card.sample.row} · no measured tokens`;
    }
    for (const move of bounds) move();
    byId("alpha-value").textContent = number(settings.alpha, 2);
    byId("beta-value").textContent = number(settings.beta, 2);
    drawScale();
    if (settings.sort === "weight") arrange();
    refreshTip();
  }

  function drawScale() {
    const { alpha, beta, shade } = settings;
    const from = shade === "weight" ? "" : `rgba(${AGAINST}, ${OPACITY}), rgba(${AGAINST}, 0) 50%, `;
    const bar = make("i");
    bar.style.backgroundImage = `linear-gradient(90deg, ${from}rgba(${FOR}, 0) ${from ? "50%" : ""}, rgba(${FOR}, ${OPACITY}))`;
    const [left, right] = shade === "weight" ? ["weighs least", "weighs most"] : ["the image speaks against", "for"];
    byId("scale").replaceChildren(make("b", { text: left }), number(shade === "weight" ? alpha : -beta, 1), bar,
      number(beta, 1), make("b", { text: right }));
  }

  function arrange() {
    const key = settings.sort;
    const sign = settings.down ? -1 : 1;
    const ordered = [...cards].sort((one, other) => {
      const [a, b] = [one.keys[key], other.keys[key]];
      if (a === null || b === null) return (a === null) - (b === null) || one.keys.row - other.keys.row;
      const order = typeof a === "string" ? a.localeCompare(b) : a - b;
      return sign * order || one.keys.row - other.keys.row;
    });
    byId("gallery").replaceChildren(...ordered.map((card) => card.element));
  }

  function search() {
    const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const card of cards) {
      const fits = wanted.every((word) => card.text.includes(word));
      card.element.hidden = !fits;
      shown += fits;
    }
    const drawn = data.rows > cards.length ? `, drawn from ${data.rows.toLocaleString("en")} rows` : "";
    byId("count").textContent = `${shown} of ${cards.length} samples${drawn}`;
  }

  // --- token, delta, weight -----------------------------------------------------------------------------------------

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
      `delta ${each(card.sample.deltas)}\nweight ${each(card.weights)}`;
  }

  function walk(event) {
    const words = event.target.closest(".words");
    if (!words) return;
    const { spans } = cards[words.closest(".card").dataset.index];
    const at = pointed && words.contains(pointed) ? spans.findIndex(({ element }) => element === pointed) : -1;
    const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 };
    if (event.key === "Escape") show(null);
    if (!(event.key in steps) || !spans.length) return;
    event.preventDefault();
    const span = spans[Math.min(Math.max(steps[event.key], 0), spans.length - 1)].element;
    span.scrollIntoView({ block: "nearest" });
    show(span);
  }

  // --- controls -----------------------------------------------------------------------------------------------------

  let waiting = false;
  function soon() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      recolour();
    });
  }

  function slide(name) {
    settings[name] = Number(byId(name).value);
    // The clamp needs alpha <= beta: the one that is moved takes the other along.
    if (settings.alpha > settings.beta) {
      const other = name === "alpha" ? "beta" : "alpha";
      settings[other] = settings[name];
      byId(other).value = settings[name];
    }
    soon();
  }

  const themes = ["as the system", "light", "dark"];
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = 0;
  function paint() {
    const name = theme ? themes[theme] : dark.matches ? "dark" : "light";
    document.documentElement.dataset.theme = name;
    byId("theme").textContent = `Theme: ${themes[theme]}`;
  }

  function start() {
    paint();
    checkAgainstPython();
    drawSummary();
    drawPlots();
    for (const name of ["alpha", "beta"]) {
      byId(name).max = data.sliderMax;
      byId(name).value = settings[name];
      byId(name).addEventListener("input", () => slide(name));
    }
    for (const width of new Set([1, 3, 5, 7, data.window].sort((a, b) => a - b))) {
      byId("window").append(make("option", { value: width, text: String(width) }));
    }
    byId("window").value = String(settings.window);
    byId("window").addEventListener("change", (event) => {
      settings.window = Number(event.target.value);
      soon();
    });
    byId("shade").addEventListener("change", (event) => {
      settings.shade = event.target.value;
      soon();
    });
    byId("sort").addEventListener("change", (event) => {
      settings.sort = event.target.value;
      arrange();
    });
    byId("direction").addEventListener("click", (event) => {
      settings.down = !settings.down;
      event.currentTarget.setAttribute("aria-pressed", String(settings.down));
      event.currentTarget.textContent = settings.down ? "descending" : "ascending";
      arrange();
    });
    byId("search").addEventListener("input", search);
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("theme").addEventListener("click", () => {
      theme = (theme + 1) % themes.length;
      paint();
    });
    dark.addEventListener("change", paint);
    const gallery = byId("gallery");
    gallery.addEventListener("mouseover", (event) => show(event.target.closest(".t")));
    gallery.addEventListener("mouseleave", () => show(null));
    gallery.addEventListener("keydown", walk);
    gallery.addEventListener("focusout", () => show(null));
    window.addEventListener("scroll", () => pointed && pointed.matches(":hover") && show(null),
      { passive: true, capture: true });
    arrange();
    search();
    recolour();
    // For the console of whoever wants to look closer, and for the tests.
    globalThis.calPage = { data, settings, weightsOf: (index) => cards[index].weights };
  }

  start();
})();
