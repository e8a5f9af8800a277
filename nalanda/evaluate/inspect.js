// Draws the page of `nalanda inspect` from the numbers in #data (inspect_page.py says how they are laid out).
// What is chosen stands in the address after #, so that a view can be linked to: #map=0&layer=2&head=3&decoder=5
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const buffer = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  const size = (side) => data.sides[side].tokens.length;
  for (const found of data.attentions) unpackMaps(found);
  for (const stream of data.streams) {
    stream.ids = new Uint32Array(buffer(stream.ids));
    stream.values = new Uint16Array(buffer(stream.values));
    stream.truth = stream.truth && new Uint16Array(buffer(stream.truth));
    stream.norms = new Float32Array(buffer(stream.norms));
  }
  const names = Object.keys(data.sides);
  const main = names[names.length - 1]; // the side whose tokens are predicted: the decoder, or an encoder alone
  const state = { map: data.attentions.length - 1, layer: 0, head: -1, stream: data.streams.length - 1, said: 0 };
  for (const name of names) state[name] = 0;
  const LONGEST_FOR_LINES = 40;
  const by = (id) => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    const drawn = tag === "svg" || tag === "path";
    const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== false) node.setAttribute(key, value);
    }
    node.append(...children);
    return node;
  }
  const percent = (p) => (p >= 0.9995 ? "100 %" : p >= 0.0995 ? `${(100 * p).toFixed(0)} %` :
    p >= 0.0005 ? `${(100 * p).toFixed(1)} %` : p > 0 ? "< 0.1 %" : "0 %");
  const token = (number) => data.vocabulary[number];
  const at = (side, place) => token(data.sides[side].tokens[place]);

  // A token as markup: a faint dot for the space before it; bytes and special tokens in their own type.
  function word(entry) {
    const space = entry[4] ? [make("span", { class: "space", "aria-hidden": "true" }, "·")] : [];
    const text = entry[3] === "bytes" ? `‹${entry[2]}›` : entry[2];
    return make("span", { class: `token ${entry[3]}` }, ...space, make("bdi", {}, text));
  }
  function full(side, place) {
    const whole = data.sides[side].spelled[place], [id, name] = at(side, place);
    const plain = JSON.stringify(name).replace(/\p{C}/gu, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);
    return `place ${place}, id ${id}, ${plain}${whole ? `: a piece of ${whole}` : ""}`;
  }
  // One tab stop for a group of things; arrow keys move inside it. `step`: key and index to the next index, -1: none.
  function roving(nodes, step) {
    nodes.forEach((node, index) => {
      node.tabIndex = index === 0 ? 0 : -1;
      node.addEventListener("focus", () => nodes.forEach((other) => { other.tabIndex = other === node ? 0 : -1; }));
      node.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && node.tagName === "TD") node.click();
        const next = nodes[step(event.key, index)];
        if (!next) return;
        event.preventDefault();
        next.focus();
      });
    });
  }
  const grid = (columns, rtl = false) => (key, index) => {
    const sideways = rtl ? -1 : 1;
    const move = { ArrowLeft: -sideways, ArrowRight: sideways, ArrowUp: -columns, ArrowDown: columns }[key];
    return move === undefined ? -1 : index + move;
  };

  // ---- attention -----------------------------------------------------------------------------------------------
  function unpackMaps(found) {
    const bytes = new Uint8Array(buffer(found.data));
    const area = size(found.query) * size(found.key);
    let start = 0;
    found.maps = found.heads.map((heads) =>
      Array.from({ length: heads }, () => bytes.subarray(start, (start += area))));
    found.means = found.maps.map(() => null);
  }
  // The chosen map as square roots of weights, one byte each, like the stored ones; head -1 is the mean of the heads.
  function chosenMap(found, layer, head) {
    if (head >= 0) return found.maps[layer][head];
    if (!found.means[layer]) {
      const heads = found.maps[layer];
      found.means[layer] = Uint8Array.from(heads[0], (_, i) =>
        Math.round(Math.sqrt(heads.reduce((sum, map) => sum + map[i] * map[i], 0) / heads.length)));
    }
    return found.means[layer];
  }
  const weight = (byte) => (byte / 255) ** 2;
  const ink = () => getComputedStyle(document.documentElement).getPropertyValue("--hue-0").match(/[0-9a-f]{2}/gi)
    .map((two) => Number.parseInt(two, 16)); // the theme's first hue, written #rrggbb in report.css
  function paint(canvas, map, height, width, rgb) {
    Object.assign(canvas, { width, height });
    const image = new ImageData(width, height);
    for (let i = 0; i < map.length; i++) image.data.set([rgb[0], rgb[1], rgb[2], map[i]], 4 * i);
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  // ---- controls ------------------------------------------------------------------------------------------------
  function select(label, options, value, change) {
    const node = make("select", { "aria-label": label, onchange: () => change(Number(node.value)) },
      ...options.map(([key, text]) => make("option", { value: key }, text)));
    node.value = value;
    return make("label", {}, make("span", {}, label), node);
  }
  function drawControls() {
    const found = data.attentions[state.map], box = by("controls");
    const focused = box.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
    box.replaceChildren();
    if (!found) return;
    if (data.attentions.length > 1)
      box.append(select("attention", data.attentions.map((a, i) => [i, a.name]), state.map, (v) => set({ map: v })));
    box.append(
      select("layer", found.layers.map((l, i) => [i, String(l)]), state.layer, (v) => set({ layer: v })),
      select("head", [[-1, "mean of all"], ...found.maps[state.layer].map((_, i) => [i, String(i + 1)])], state.head,
        (v) => set({ head: v })));
    if (focused) box.querySelector(`[aria-label="${focused}"]`).focus();
  }

  // ---- view 1: tokens ------------------------------------------------------------------------------------------
  let chips = {};
  function drawTokens() {
    const found = data.attentions[state.map], box = by("tokens");
    const shown = [...new Set(found ? [found.query, found.key, main] : [main])];
    const titles = { [main]: "the tokens it writes" };
    if (found) Object.assign(titles, { [found.key]: "what they look at", [found.query]: "the tokens that look" });
    box.replaceChildren();
    chips = {};
    for (const side of shown) {
      const about = data.sides[side], count = size(side);
      chips[side] = about.tokens.map((number, place) => {
        const entry = token(number), own = place >= count - about.generated;
        return make("button", { type: "button", title: full(side, place),
          class: `chip${entry[4] || entry[3] === "special" ? " starts" : ""}${own ? " own" : ""}`,
          onclick: () => set({ [side]: place }), onmouseenter: () => shade(side, place),
          onmouseleave: () => shade(null), onfocus: () => shade(side, place), onblur: () => shade(null) },
        word(entry), make("span", { class: "weight" }));
      });
      roving(chips[side], grid(count, about.rtl));
      if (shown.length > 1) box.append(make("h3", {}, titles[side]));
      box.append(make("div", { class: "row", dir: about.rtl ? "rtl" : "ltr", role: "group", "aria-label": side },
        ...chips[side]));
      if (about.generated) box.append(make("p", { class: "note" }, "Underlined tokens were written by the model itself."));
    }
    shade(null);
  }
  // Heat: how much the token under the pointer (else the chosen one) looks at each, or how much each looks at it.
  function shade(side, place) {
    const found = data.attentions[state.map];
    if (!found) return markChosen();
    const map = chosenMap(found, state.layer, state.head), keys = size(found.key);
    const back = side === found.key && side !== found.query, heat = back ? found.query : found.key;
    const query = side === found.query ? place : state[found.query];
    const row = Array.from({ length: size(heat) }, (_, i) => map[back ? i * keys + place : query * keys + i]);
    for (const name of Object.keys(chips))
      chips[name].forEach((chip, i) => {
        const byte = name === heat ? row[i] : 0;
        chip.style.setProperty("--p", (byte / 255).toFixed(3));
        chip.querySelector(".weight").textContent = weight(byte) >= 0.01 ? (100 * weight(byte)).toFixed(0) : "";
        chip.classList.toggle("pointed", name === side && i === place);
      });
    markChosen();
    const best = row.map((byte, i) => [weight(byte), i]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const parts = best.filter(([w]) => w >= 0.005)
      .flatMap(([w, i], n) => [n ? ", " : "", word(at(heat, i)), ` ${percent(w)}`]);
    by("tokens-says").replaceChildren(word(back ? at(found.key, place) : at(found.query, query)),
      back ? " is looked at most by " : " looks most at ", ...parts);
  }
  function markChosen() {
    const hides = data.predictions[0]?.kind === "masked" && state.said === 0 && data.predictions[0].truth[state[main]] >= 0;
    for (const name of Object.keys(chips))
      chips[name].forEach((chip, i) => {
        chip.classList.toggle("chosen", i === state[name]);
        chip.classList.toggle("hid", hides && name === main && i === state[name]);
        chip.setAttribute("aria-pressed", i === state[name]);
      });
  }
  const nameTags = (side) => data.sides[side].tokens.map((number, i) =>
    make("span", { class: "name", title: full(side, i) }, word(token(number))));
  // The same as lines from the tokens that look, on the left, to those looked at; the chosen token's stand out.
  function drawLines() {
    const found = data.attentions[state.map], box = by("lines");
    box.replaceChildren();
    if (!found || Math.max(size(found.query), size(found.key)) > LONGEST_FOR_LINES) return;
    const map = chosenMap(found, state.layer, state.head), keys = size(found.key), chosen = state[found.query];
    const left = nameTags(found.query), right = nameTags(found.key), y = (i) => 24 * i + 12;
    const height = 24 * Math.max(left.length, right.length), rest = [], mine = [];
    for (let i = 0; i < map.length; i++) {
      const w = weight(map[i]), query = Math.floor(i / keys), own = query === chosen;
      if (w >= 0.02)
        (own ? mine : rest).push(make("path", { class: own ? "mine" : "", style: `opacity: ${own ? 0.25 + 0.75 * w : w / 2}`,
          d: `M0 ${y(query)}C50 ${y(query)} 50 ${y(i % keys)} 100 ${y(i % keys)}` }));
    }
    const picture = make("svg", { viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", style: `height: ${height}px`,
      "aria-hidden": "true" }, ...rest, ...mine);
    left[chosen].classList.add("chosen");
    left.forEach((name, i) => name.addEventListener("click", () => set({ [found.query]: i })));
    box.append(make("div", { class: "left" }, ...left), picture, make("div", { class: "right" }, ...right));
  }

  // ---- view 2: all layers and heads ----------------------------------------------------------------------------
  let cells = [];
  function drawGrid() {
    const found = data.attentions[state.map], box = by("grid");
    box.replaceChildren();
    cells = [];
    if (!found) return;
    const rgb = ink(), most = Math.max(...found.heads);
    const axis = (text) => make("span", { class: "axis" }, String(text)), rows = [axis("layer")];
    for (let head = 0; head < most; head++) rows.push(axis(head + 1));
    found.layers.forEach((layer, l) => {
      rows.push(axis(layer));
      for (let head = 0; head < most; head++) {
        if (head >= found.heads[l]) { rows.push(axis("")); continue; }
        const canvas = make("canvas", { "aria-hidden": "true" });
        paint(canvas, found.maps[l][head], size(found.query), size(found.key), rgb);
        const name = `layer ${layer}, head ${head + 1}`;
        const cell = make("button", { type: "button", class: "map", title: name, "aria-label": name,
          "data-cell": `${l} ${head}`, onclick: () => set({ layer: l, head }) }, canvas);
        cells.push(cell);
        rows.push(cell);
      }
    });
    roving(cells, grid(most));
    const style = `--heads: ${most}; --size: ${found.layers.length > 8 ? 2.75 : 4.5}rem`;
    box.append(make("div", { class: "scroll" }, make("div", { class: "maps", style }, ...rows)));
    by("grid-says").textContent = `${found.name[0].toUpperCase()}${found.name.slice(1)} attention: ${found.how}.`;
    markGrid();
  }
  function markGrid() {
    cells.forEach((cell) => {
      const [l, head] = cell.dataset.cell.split(" ").map(Number), here = l === state.layer;
      cell.classList.toggle("chosen", here && (head === state.head || state.head < 0));
      cell.setAttribute("aria-pressed", here && head === state.head);
    });
  }

  // ---- view 3: one head ----------------------------------------------------------------------------------------
  function drawMatrix() {
    const found = data.attentions[state.map], box = by("matrix");
    box.replaceChildren();
    if (!found) return;
    const height = size(found.query), width = size(found.key), map = chosenMap(found, state.layer, state.head);
    const cell = Math.max(11, Math.min(26, Math.floor((box.clientWidth - 90) / width)));
    const canvas = make("canvas", { tabindex: 0, role: "img", style: `width:${cell * width}px;height:${cell * height}px`,
      "aria-label": `Attention, ${height} by ${width}; arrow keys read it cell by cell` });
    paint(canvas, map, height, width, ink());
    const mark = make("span", { class: "cursor", style: `width:${cell}px;height:${cell}px` });
    const rows = nameTags(found.query), columns = nameTags(found.key);
    const small = `--cell:${cell}px; --letters:${Math.min(12, cell - 1)}px`;
    box.append(make("div", { class: "scroll" }, make("div", { class: "matrix", style: small },
      make("span"), make("div", { class: "columns" }, ...columns),
      make("div", { class: "rows" }, ...rows), make("div", { class: "sheet" }, canvas, mark))));
    let row, column;
    const show = (r, c) => {
      [row, column] = [Math.max(0, Math.min(height - 1, r)), Math.max(0, Math.min(width - 1, c))];
      mark.style.transform = `translate(${column * cell}px, ${row * cell}px)`;
      rows.forEach((name, i) => name.classList.toggle("chosen", i === row));
      columns.forEach((name, i) => name.classList.toggle("chosen", i === column));
      by("matrix-says").replaceChildren(word(at(found.query, row)), ` (${row}) looks at `, word(at(found.key, column)),
        ` (${column}): ${percent(weight(map[row * width + column]))}`);
    };
    const follow = (event) => show(Math.floor(event.offsetY / cell), Math.floor(event.offsetX / cell));
    canvas.addEventListener("mousemove", follow);
    canvas.addEventListener("click", (event) => { follow(event); set({ [found.query]: row }); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "Enter") set({ [found.query]: row });
      if (!step) return;
      event.preventDefault();
      show(row + step[0], column + step[1]);
    });
    const looks = map.subarray(state[found.query] * width, (state[found.query] + 1) * width);
    show(state[found.query], looks.indexOf(Math.max(...looks)));
  }

  // ---- view 4: the stream --------------------------------------------------------------------------------------
  function drawStream() {
    const stream = data.streams[state.stream], box = by("stream"), count = size(stream.side);
    box.replaceChildren();
    if (data.streams.length > 1)
      box.append(select("stream", data.streams.map((s, i) => [i, s.side]), state.stream, (v) => set({ stream: v })));
    document.querySelectorAll("[data-kind]").forEach((how) => { how.hidden = how.dataset.kind !== stream.kind; });
    if (stream.kind === "similar") box.append(make("p", { class: "note" }, `Not read as words: ${stream.why}.`));
    const cellsHere = [], body = make("tbody"), head = make("tr", {}, make("td"));
    for (let place = 0; place < count; place++)
      head.append(make("th", { scope: "col", title: full(stream.side, place) }, word(at(stream.side, place))));
    stream.rows.forEach((row, r) => {
      const line = make("tr", {}, make("th", { scope: "row" }, rowName(row)));
      for (let place = 0; place < count; place++) {
        const [entry, value] = stream.count ? candidate(stream, r, place, 0) : [null, 0];
        const right = stream.kind === "lens" && entry === truth(stream, place);
        const cell = make("td", { class: right ? "right" : "", style: `--p: ${Math.max(0, value).toFixed(3)}`,
          onmouseenter: () => tell(stream, r, place), onfocus: () => tell(stream, r, place),
          onclick: () => set({ [stream.side]: place }) }, entry ? word(entry) : "");
        cellsHere.push(cell);
        line.append(cell);
      }
      body.append(line);
    });
    roving(cellsHere, grid(count));
    box.append(make("div", { class: "scroll" }, make("table", { class: "lens" }, make("thead", {}, head), body)));
    tell(stream, stream.rows.length - 1, state[stream.side]);
  }
  const rowName = (row) => (row ? `layer ${row}` : "embeddings");
  function candidate(stream, r, place, k) {
    const i = (r * size(stream.side) + place) * stream.count + k, share = stream.values[i] / 65535;
    return stream.kind === "lens" ? [token(stream.ids[i]), share] : [at(stream.side, stream.ids[i]), 2 * share - 1];
  }
  function truth(stream, place) {
    const number = data.predictions[0].truth[place];
    const known = number >= 0 ? number : data.predictions[data.predictions.length - 1].truth[place];
    return known >= 0 ? token(known) : null;
  }
  function tell(stream, r, place) {
    const i = r * size(stream.side) + place, row = stream.rows[r], lens = stream.kind === "lens";
    const parts = [`${row ? "after " : ""}${rowName(row)}, at `, word(at(stream.side, place)), ` (${place}): `];
    for (let k = 0; k < stream.count; k++) {
      const [entry, value] = candidate(stream, r, place, k);
      parts.push(k ? ", " : "", word(entry), lens ? ` ${percent(value)}` : ` ${value.toFixed(2)}`);
    }
    const right = lens && truth(stream, place);
    if (right) parts.push("; what stands there, ", word(right), `, ${percent(stream.truth[i] / 65535)}`);
    parts.push(`. Length of the stream ${stream.norms[i].toLocaleString("en", { maximumSignificantDigits: 3 })}.`);
    by("stream-says").replaceChildren(...parts);
    by("stream").querySelectorAll("thead th").forEach((name, n) => name.classList.toggle("chosen", n === place));
  }

  // ---- view 5: predictions -------------------------------------------------------------------------------------
  function drawPredictions() {
    const box = by("predictions");
    if (!box) return;
    box.replaceChildren();
    const place = state[main], found = data.predictions[Math.min(state.said, data.predictions.length - 1)];
    const verb = { next: "after ", read: "at ", masked: "instead of " }[found.kind];
    if (data.predictions.length > 1) {
      const tick = make("input", { type: "checkbox", onchange: () => set({ said: tick.checked ? 0 : 1 }) });
      tick.checked = found.kind === "masked";
      box.append(make("label", { class: "tick" }, tick, " hide the chosen token"));
    }
    box.append(make("p", { class: "asked" }, verb, word(at(main, place)), ` (${full(main, place)})`));
    const right = found.truth[place];
    if (found.kind === "masked" && right < 0) {
      by("predictions-says").textContent = "A special token is not hidden; choose another, or untick.";
      return;
    }
    const shown = found.ids[place].map((number, k) => [number, found.values[place][k], k + 1]);
    if (right >= 0 && !found.ids[place].includes(right))
      shown.push([right, found.truth_value[place], found.truth_rank[place]]);
    box.append(make("ol", { class: "bars" }, ...shown.map(([number, value, rank]) =>
      make("li", { class: number === right ? "right" : "", style: `--p: ${value}`,
        title: `id ${token(number)[0]}, ${JSON.stringify(token(number)[1])}` },
      make("span", { class: "rank" }, String(rank)), word(token(number)), make("span", { class: "bar" }),
      make("span", { class: "share" }, percent(value))))));
    const what = found.kind === "next" ? "What really follows" : "What really stands there";
    by("predictions-says").replaceChildren(...(right < 0 ? ["The text ends here: nothing to compare with."] :
      [`${what}: `, word(token(right)), `, ${percent(found.truth_value[place])}, rank ${found.truth_rank[place]}.`]));
  }

  // ---- state ---------------------------------------------------------------------------------------------------
  function bound() {
    const whole = (value, low, high) => Math.max(low, Math.min(high, Number.isInteger(value) ? value : low));
    state.map = whole(state.map, 0, Math.max(0, data.attentions.length - 1));
    state.stream = whole(state.stream, 0, data.streams.length - 1);
    state.said = whole(state.said, 0, 1);
    for (const name of names) state[name] = whole(state[name], 0, size(name) - 1);
    const found = data.attentions[state.map];
    if (!found) return;
    state.layer = whole(state.layer, 0, found.layers.length - 1);
    state.head = whole(state.head, -1, found.heads[state.layer] - 1);
  }
  const DRAW = { tokens: drawTokens, lines: drawLines, grid: drawGrid, matrix: drawMatrix, stream: drawStream,
    said: drawPredictions };
  function set(changes, write = true) {
    const before = { ...state };
    Object.assign(state, changes);
    bound();
    const moved = (key) => before[key] !== state[key];
    drawControls();
    if (moved("map")) { DRAW.tokens(); DRAW.grid(); }
    if (moved("layer") || moved("head")) markGrid();
    if (["map", "layer", "head", ...names].some(moved)) { shade(null); DRAW.lines(); DRAW.matrix(); }
    const stream = data.streams[state.stream];
    if (moved("stream")) DRAW.stream();
    else if (moved(stream.side)) tell(stream, stream.rows.length - 1, state[stream.side]);
    if (moved("said") || moved(main)) { DRAW.said(); markChosen(); }
    if (write) history.replaceState(null, "", `#${new URLSearchParams(Object.entries(state))}`);
  }
  function fromAddress() {
    const given = [...new URLSearchParams(location.hash.slice(1))].filter(([key]) => key in state);
    return Object.fromEntries(given.map(([key, value]) => [key, Number.parseInt(value, 10)]));
  }
  state[main] = Math.max(0, size(main) - 1 - (data.predictions.some((p) => p.kind === "masked") ? 1 : 0));
  Object.assign(state, fromAddress());
  bound();
  drawControls();
  Object.values(DRAW).forEach((draw) => draw());
  addEventListener("hashchange", () => set(fromAddress(), false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawGrid(); drawMatrix(); });
  addEventListener("resize", drawMatrix);
})();
