// --- the method -----------------------------------------------------------------------------------------------------

// Mean of the clamped, defined scores within the window and within the token's contiguous span; an undefined score
// weighs alpha and is left out of its neighbours' mean: token_weights with map "clamp" and pool "span".
function weights(sample, { alpha, beta, window: width }) {
  if (!data.live) return sample.weights;
  const { scores, spans } = sample;
  const half = (width - 1) / 2;
  const clamped = scores.map((score) => (score === null ? null : Math.min(Math.max(score, alpha), beta)));
  const found = new Array(scores.length);
  spans.forEach((start, at) => {
    const stop = at + 1 < spans.length ? spans[at + 1] : scores.length;
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
