"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const space = get("svg-space").namespaceURI;
  const task = get("task"), arm = get("arm"), change = get("change"), words = get("words"), shown = get("image");

  const make = (name, text, className) => {
    const node = document.createElement(name);
    if (text !== undefined) node.textContent = text;
    if (className) node.className = className;
    return node;
  };
  const draw = (name, attributes) => {
    const node = document.createElementNS(space, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const bits = (hex, number) =>
    Array.from({ length: number }, (_, at) => (parseInt(hex[at >> 2], 16) >> (3 - (at & 3))) & 1);

  // The outline of cells: every edge that no other cell of theirs shares.
  const outline = (on, rows, columns) => {
    let path = "";
    for (let at = 0; at < rows * columns; at++) {
      if (!on[at]) continue;
      const x = at % columns, y = (at - x) / columns;
      if (y === 0 || !on[at - columns]) path += `M${x} ${y}h1`;
      if (y === rows - 1 || !on[at + columns]) path += `M${x} ${y + 1}h1`;
      if (x === 0 || !on[at - 1]) path += `M${x} ${y}v1`;
      if (x === columns - 1 || !on[at + 1]) path += `M${x + 1} ${y}v1`;
    }
    return path;
  };

  // An image with the tokens that an arm dropped dimmed, and a dashed line around the evidence.
  const seen = (entry, cells, says) => {
    const [width, height] = entry.size;
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "seen", role: "img", "aria-label": says });
    svg.append(draw("image", { href: entry.data, width, height, preserveAspectRatio: "none" }));
    for (const [left, top, right, bottom] of entry.boxes) {
      const corner = { x: left * width, y: top * height, width: (right - left) * width, height: (bottom - top) * height, fill: "none" };
      svg.append(draw("rect", { ...corner, stroke: "#000", "stroke-width": 4 }));
      svg.append(draw("rect", { ...corner, stroke: "#fff", "stroke-width": 2, "stroke-dasharray": "4 3" }));
    }
    if (!entry.grid) return svg;
    const [rows, columns] = entry.grid;
    const layer = draw("g", { transform: `scale(${width / columns} ${height / rows})` });
    const line = (path, color, thick, dash) =>
      draw("path", { d: path, fill: "none", stroke: color, "stroke-width": thick, "vector-effect": "non-scaling-stroke", ...(dash && { "stroke-dasharray": dash }) });
    if (cells) {
      const kept = bits(cells, rows * columns);
      let gone = "";
      kept.forEach((one, at) => { if (!one) gone += `M${at % columns} ${Math.floor(at / columns)}h1v1h-1z`; });
      layer.append(draw("path", { d: gone, fill: "#0b0d10", "fill-opacity": 0.78 }));
      layer.append(line(outline(kept, rows, columns), "#ffc43d", 1));
    }
    if (entry.evidence.length) {
      const on = Array(rows * columns).fill(0);
      entry.evidence.forEach((at) => { on[at] = 1; });
      const path = outline(on, rows, columns);
      layer.append(line(path, "#000", 4), line(path, "#fff", 2, "4 3"));
    }
    svg.querySelector("image").after(layer);
    return svg;
  };

  const score = (answer) => Number(answer.correct);  // true or false, or a share of right
  const mark = (answer) => {
    const own = score(answer), says = own >= 1 ? "✓ right" : own <= 0 ? "✗ wrong" : `${own.toFixed(2)} right`;
    return `${answer.answer || "(nothing)"} ${says}`;
  };
  const kind = (dense, own) => {
    if (dense.answer === own.answer) return "same";
    if (score(dense) > score(own)) return "lost";
    if (score(dense) < score(own)) return "gained";
    return "other";
  };
  const KINDS = { lost: "right answer lost", gained: "right answer gained", other: "other words", same: "same answer" };

  const card = (entry) => {
    const dense = entry.answers.dense, own = entry.answers[arm.value], how = kind(dense, own);
    const node = make("article", undefined, "card");
    node.dataset.kind = how;
    node.append(make("h3", entry.question));
    node.append(seen(entry, own.cells, `What ${arm.value} kept`));
    const list = make("dl");
    const says = [["truth", entry.truth || "not known"], ["dense", mark(dense)], ["pruned", mark(own)], ["", KINDS[how]],
      ["kept", `${own.kept} of ${dense.kept} visual tokens`], ["task", `${entry.task}, question ${entry.index} of ${entry.result}`]];
    for (const [name, text] of says) list.append(make("dt", name), make("dd", text));
    node.append(list);
    return node;
  };

  const gallery = () => {
    const place = get("cards"), ask = words.value.trim().toLowerCase();
    const found = data.filter((entry) => {
      const own = entry.answers[arm.value];
      if (!own || (task.value !== "all" && entry.task !== task.value)) return false;
      const how = kind(entry.answers.dense, own);
      if (change.value === "changed" ? how === "same" : change.value !== "every" && how !== change.value) return false;
      const text = [entry.question, entry.truth, entry.task, entry.answers.dense.answer, own.answer].join(" ").toLowerCase();
      return text.includes(ask);
    });
    place.replaceChildren(...found.map(card));
    get("count").textContent = `${found.length} of ${data.length} questions`;
  };

  const strips = () => {
    const entry = data[shown.value];
    if (!entry) return;
    get("asked").textContent = `${entry.question} Truth: ${entry.truth || "not known"}.`;
    get("strip").replaceChildren(...Object.entries(entry.answers).map(([label, own]) => {
      const node = make("figure");
      node.append(seen(entry, own.cells, `What ${label} kept`), make("figcaption", `${label}: ${own.kept} tokens, ${mark(own)}`));
      return node;
    }));
  };

  const byTask = () => {
    for (const node of document.querySelectorAll("figure[data-task]")) node.hidden = node.dataset.task !== task.value;
    for (const node of document.querySelectorAll("[data-column]")) node.classList.toggle("chosen", node.dataset.column === task.value);
    if (arm) gallery();
  };

  task.addEventListener("change", byTask);
  if (arm) {
    for (const node of [arm, change]) node.addEventListener("change", gallery);
    words.addEventListener("input", gallery);
    shown.addEventListener("change", strips);
    strips();
  }
  byTask();
})();
