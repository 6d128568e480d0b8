// --- a card for each sample -------------------------------------------------------------------------------------------

const LEVELS = 64;
const OPACITY = 0.65;
const REASONS = { word: `the lowest ${data.score.plural} of all rows`, lowest: "the lowest means of all rows",
  highest: "the highest means of all rows", random: "drawn at random", failed: "failed" };

const cards = data.samples.map((sample, index) => {
  const spans = [];
  const element = make("article", { class: "card", "data-index": index, "aria-label": `sample ${sample.id}` });
  const images = make("div", { class: "images" });
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
  const words = make("div", { class: "words", role: "group", tabindex: -1,
    "aria-label": `words of ${sample.id}; arrow keys go from word to word and from sample to sample` });
  const mark = make("input", { type: "checkbox", tabindex: -1 });
  const head = make("div", { class: "head" }, make("h3", { text: sample.id, dir: "auto" }),
    make("label", { class: "mark" }, mark, "mark"), facts);
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
          (sample.scores.slice(first, last + 1).every((score) => score === null) ? " undefined" : "");
        const span = make("span", { class: `t${kind}`, "data-token": first, text: sample.tokens[last] });
        spans.push({ element: span, first, last });
        said.append(span);
      }
    }
    words.append(line);
  }
  if (sample.status !== "ok") {
    words.append(make("p", { class: "failed", text: `${sample.status}: ${sample.error || ""}`, dir: "auto" }));
  }
  element.append(images, head, words);
  const text = [sample.id, `#${sample.row}`, sample.status, sample.error || "", ...sample.turns.map((turn) =>
    turn.text === undefined ? sample.tokens.slice(turn.from, turn.to).join("") : turn.text)].join("\n").toLowerCase();
  const { [MIN]: min, [MAX]: max, [MEAN]: meanScore, share_negative: negative } = sample.numbers;
  return {
    element, facts, words, spans, mark, sample, text,
    levels: new Int16Array(spans.length).fill(-1000),
    weights: [],
    keys: { row: index, id: sample.id, length: sample.tokens.length, mean: meanScore, min, max, negative, weight: null },
  };
});

function colour(level) {
  if (level === 0) return "";
  const opacity = ((Math.abs(level) / LEVELS) * OPACITY).toFixed(3);
  return `rgba(${level > 0 ? FOR : AGAINST}, ${opacity})`;
}
const palette = new Map();
for (let level = -LEVELS; level <= LEVELS; level++) palette.set(level, colour(level));

// A score of this size has full strength.
const fullScore = () => data.full || settings.beta || 1;

function levelOf(score, weight) {
  const { alpha, beta, shade } = settings;
  const part = shade === "weight" ? (beta > alpha ? (weight - alpha) / (beta - alpha) : 0) : (score || 0) / fullScore();
  return Math.round(Math.min(Math.max(part, -1), 1) * LEVELS);
}

function factsOf({ sample, keys }) {
  // Why a card is here that is not among the first of its order.
  const lone = data.samples.length < data.rows && sample.why.every((name) => name === "random" || name === "failed");
  const reason = lone ? ` · ${sample.why.map((name) => REASONS[name]).join(", ")}` : "";
  if (!keys.length) return `#${sample.row} · no measured tokens${reason}`;
  return `#${sample.row} · ${counted(keys.length, "token")} · ${NOUN}: lowest ${number(keys.min, 2)}, mean ${number(keys.mean, 2)}` +
    ` · below 0: ${share(keys.negative)} · mean weight ${number(keys.weight, 2)}${reason}`;
}

function recolour() {
  for (const card of cards) {
    card.weights = weights(card.sample, settings);
    card.keys.weight = mean(card.weights.filter((_, token) => card.sample.scores[token] !== null));
    card.spans.forEach(({ element, first, last }, at) => {
      let now = 0;  // The most extreme of the tokens.
      for (let token = first; token <= last; token++) {
        const one = levelOf(card.sample.scores[token], card.weights[token]);
        if (Math.abs(one) > Math.abs(now)) now = one;
      }
      if (now !== card.levels[at]) {
        card.levels[at] = now;
        element.style.backgroundColor = palette.get(now);
      }
    });
    card.facts.textContent = factsOf(card);
  }
}

function drawScale() {
  const { alpha, beta, shade } = settings;
  const both = shade !== "weight" && data.score.signed;
  const from = both ? `rgba(${AGAINST}, ${OPACITY}), rgba(${AGAINST}, 0) 50%, ` : "";
  const bar = make("i");
  bar.style.backgroundImage = `linear-gradient(90deg, ${from}rgba(${FOR}, 0) ${from ? "50%" : ""}, rgba(${FOR}, ${OPACITY}))`;
  const [left, right] = both ? ["the image speaks against", "for"]
    : shade === "weight" ? ["weighs least", "weighs most"] : [NOUN, data.score.unit];
  const [low, high] = shade === "weight" ? [alpha, beta] : [both ? -fullScore() : 0, fullScore()];
  const digits = high < 1 ? 3 : 1;
  byId("scale").replaceChildren(make("b", { text: left }), number(low, digits), bar, number(high, digits),
    make("b", { text: right }));
}
