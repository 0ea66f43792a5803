// The page's behavior: draws the figures in the reader's colors, sorts and filters the table, and lets the brushed
// parallel coordinates and the learning curves follow. No framework, nothing from a network.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const config = { displayModeBar: false, responsive: true }; // a double click takes a zoom back
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const FIRST = 300; // rows of the table at first: thousands make a page slow
  const BINS = 10; // colors of the learning curves
  const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
  const WORDS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999"]; // Okabe & Ito's
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // --- Figures: the layouts come without ink and paper.
  function themed(layout) {
    const made = { ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent" };
    made.font = { ...layout.font, color: css("--ink"), family: "system-ui, sans-serif", size: 12 };
    made.hoverlabel = { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } };
    made.legend = { ...layout.legend, bgcolor: "transparent" };
    if (made.title && made.title.text && made.title.font) made.title = { ...made.title, font: { ...made.title.font, color: css("--ink") } };
    for (const key of Object.keys({ xaxis: 0, yaxis: 0, ...layout }))
      if (/^[xy]axis\d*$/.test(key))
        made[key] = { zeroline: false, ...layout[key], gridcolor: css("--grid"), linecolor: css("--line"), tickcolor: css("--line") };
    return made;
  }

  function lines(name) { // the parallel coordinates take their ink from the trace
    if (name !== "parallel") return data.figures[name].data;
    // The best lines stand out on either paper: bright on dark, dark on light.
    const shades = dark.matches ? CIVIDIS.slice(2) : CIVIDIS.slice(0, 9).reverse();
    const colorscale = shades.map((color, n) => [n / (shades.length - 1), color]);
    return data.figures[name].data.map((trace) => ({
      ...trace, line: { ...trace.line, colorscale },
      labelfont: { color: css("--ink"), size: 13 }, tickfont: { color: css("--ink"), size: 11 },
      rangefont: { color: "rgba(0,0,0,0)", size: 1 },
      unselected: { line: { color: css("--soft"), opacity: 0.08 } },
    }));
  }

  const figures = [...document.querySelectorAll("[data-figure]")];
  function draw(node) {
    const name = node.dataset.figure;
    return Plotly.react(node, lines(name), themed(data.figures[name].layout), config);
  }

  // --- The trials: table, brush and learning curves follow each other.
  function trialsOf({ columns, rows, curves, every }) {
    const place = Object.fromEntries(columns.map((column, i) => [column.name, i]));
    const table = document.getElementById("table");
    const body = document.createElement("tbody");
    const state = { by: place.best, down: data.better === "max", filters: columns.map(() => ""), brushed: null, most: FIRST };

    function written(value, form) {
      if (value === null) return "";
      if (typeof value !== "number") return String(value);
      if (form === "whole") return String(value);
      if (form === "score") return Math.abs(value) >= 1000 ? value.toPrecision(4) : value.toFixed(4);
      if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5)) return value.toExponential(2);
      return Number.isInteger(value) ? String(value) : value.toPrecision(3);
    }

    function passes(value, text) {
      const asked = text.trim().toLowerCase();
      if (!asked) return true;
      const range = asked.match(/^(-?[\d.e+-]+)\.\.(-?[\d.e+-]+)$/);
      if (range) return typeof value === "number" && value >= +range[1] && value <= +range[2];
      const bound = asked.match(/^(<=|>=|<|>|=)\s*(-?[\d.e+-]+)$/);
      if (bound) {
        if (typeof value !== "number") return false;
        const limit = +bound[2];
        return { "<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit, "=": value === limit }[bound[1]];
      }
      return value !== null && String(value).toLowerCase().includes(asked);
    }

    function shown() { // numbers of the trials that pass brush and filters
      return rows.map((_, i) => i).filter((i) =>
        (!state.brushed || state.brushed.has(i)) && state.filters.every((text, k) => passes(rows[i][k], text)));
    }

    function sorted(kept) {
      const k = state.by, sign = state.down ? -1 : 1;
      return kept.sort((a, b) => {
        const x = rows[a][k], y = rows[b][k];
        if (x === null || y === null) return (x === null) - (y === null); // blanks last, either way
        return (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y))) * sign || a - b;
      });
    }

    function head() {
      const tr = document.createElement("tr");
      columns.forEach((column, k) => {
        const th = document.createElement("th"), button = document.createElement("button"), input = document.createElement("input");
        th.scope = "col";
        th.title = column.hint;
        if (column.form !== "text") th.className = "number";
        button.type = "button";
        button.textContent = column.unit ? `${column.name} [${column.unit}]` : column.name;
        button.addEventListener("click", () => {
          state.down = state.by === k ? !state.down : column.form !== "text";
          state.by = k;
          refresh();
        });
        input.setAttribute("aria-label", `Filter ${column.name}`);
        input.placeholder = "filter";
        input.addEventListener("input", () => { state.filters[k] = input.value; refresh(); });
        th.append(button, input);
        tr.append(th);
      });
      const thead = document.createElement("thead");
      thead.append(tr);
      table.append(thead, body);
    }

    function refresh() {
      const kept = sorted(shown());
      body.replaceChildren(...kept.slice(0, state.most).map((i) => {
        const tr = document.createElement("tr");
        if (i === data.best) tr.className = "best";
        else if (data.failed.includes(rows[i][place.state])) tr.className = "failed";
        columns.forEach((column, k) => {
          const td = document.createElement("td");
          td.textContent = written(rows[i][k], column.form);
          if (column.form !== "text") td.className = "number";
          tr.append(td);
        });
        return tr;
      }));
      if (kept.length > state.most) body.append(more(kept.length));
      const all = kept.length === rows.length;
      document.getElementById("count").textContent = all ? `${rows.length.toLocaleString("en")} trials` :
        `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")} trials`;
      document.getElementById("reset").disabled = all;
      table.querySelectorAll("thead th").forEach((th, k) =>
        th.setAttribute("aria-sort", k !== state.by ? "none" : state.down ? "descending" : "ascending"));
      drawCurves(kept);
    }

    function more(count) {
      const tr = document.createElement("tr"), td = document.createElement("td"), button = document.createElement("button");
      td.colSpan = columns.length;
      button.type = "button";
      button.textContent = `Show all ${count.toLocaleString("en")} rows`;
      button.addEventListener("click", () => { state.most = rows.length; refresh(); });
      td.append(button);
      tr.append(td);
      return tr;
    }

    // --- Brushing the parallel coordinates.
    function brush(node) {
      const kept = new Set(data.parallel);
      for (const dimension of node.data[0].dimensions) {
        if (!dimension.constraintrange) continue;
        const ranges = Array.isArray(dimension.constraintrange[0]) ? dimension.constraintrange : [dimension.constraintrange];
        const values = node._fullData[0].dimensions[node.data[0].dimensions.indexOf(dimension)].values;
        data.parallel.forEach((trial, k) => {
          if (!ranges.some(([low, high]) => values[k] >= low && values[k] <= high)) kept.delete(trial);
        });
      }
      state.brushed = node.data[0].dimensions.some((d) => d.constraintrange) ? kept : null;
      refresh();
    }

    function reset() {
      state.filters = columns.map(() => "");
      table.querySelectorAll("thead input").forEach((input) => { input.value = ""; });
      const node = document.querySelector('[data-figure="parallel"]');
      if (state.brushed) { // the page is refreshed by `brush`
        const free = node.data[0].dimensions.map((_, k) => [`dimensions[${k}].constraintrange`, null]);
        Plotly.restyle(node, Object.fromEntries(free));
      } else refresh();
    }

    // --- Learning curves: one line per color, broken between trials, so that thousands of trials stay quick.
    const select = document.getElementById("color");
    const canvas = document.getElementById("all-curves");

    function colors() {
      for (const [value, text] of [["best", `best ${data.objective}`], ["state", "state"], ["role", "role"],
        ...columns.filter((column) => column.searched).map((column) => [column.name, column.name])]) {
        const option = document.createElement("option");
        option.value = value;
        option.textContent = text;
        select.append(option);
      }
      const first = columns.find((column) => column.searched);
      if (first) select.value = first.name;
      select.addEventListener("change", () => drawCurves(shown()));
    }

    function groups(kept) { // [{name, color, trials}]
      const k = place[select.value], column = columns[k];
      const known = kept.filter((i) => rows[i][k] !== null);
      const none = kept.filter((i) => rows[i][k] === null);
      const rest = none.length ? [{ name: "none", color: "#999999", trials: none }] : [];
      const values = [...new Set(known.map((i) => rows[i][k]))];
      if (column.form === "text" || values.length <= 6) {
        const order = column.form === "text" ? values.sort() : values.sort((a, b) => a - b);
        return order.slice(0, 24).map((value, n) => ({
          name: escaped(written(value, column.form)), color: WORDS[n % WORDS.length],
          trials: known.filter((i) => rows[i][k] === value) })).concat(rest);
      }
      const log = column.log && Math.min(...values) > 0, scale = (v) => log ? Math.log(v) : v;
      // The worse half of the scores shares the darkest colors: most of it is far off and alike.
      const ordered = values.map(scale).sort((a, b) => a - b);
      const low = column.form === "score" && data.better === "max" ? ordered[Math.floor(ordered.length / 2)] : ordered[0];
      const high = column.form === "score" && data.better === "min" ? ordered[Math.floor(ordered.length / 2)] : ordered[ordered.length - 1];
      const bin = (v) => Math.max(0, Math.min(BINS - 1, Math.floor(BINS * (scale(v) - low) / (high - low || 1))));
      const flip = column.form === "score" && data.better === "min";
      const edge = (n) => { const v = low + (high - low) * n / BINS; return written(log ? Math.exp(v) : v, column.form); };
      return [...Array(BINS).keys()].map((n) => ({
        name: `${edge(n)} to ${edge(n + 1)}`, color: shade(flip ? BINS - 1 - n : n), trials: known.filter((i) => bin(rows[i][k]) === n),
      })).filter((group) => group.trials.length).concat(rest);
    }

    // In the dark the darkest shades, in the light the palest, would not be seen.
    const shade = (n) => CIVIDIS[dark.matches ? Math.round(2 + n * 7 / 9) : Math.round(n * 8 / 9)];
    const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

    function points(trials) {
      const x = [], y = [], text = [];
      for (const i of trials) {
        const last = rows[i][place.epochs];
        curves[i].forEach((score, n) => {
          x.push(Math.min(1 + n * every, last));
          y.push(score);
          text.push(`trial ${rows[i][place.trial]}: ${score === null ? "" : written(score, "score")}`);
        });
        x.push(null); y.push(null); text.push("");
      }
      return { x, y, text };
    }

    function drawCurves(kept) {
      if (!canvas) return;
      const opacity = kept.length > 200 ? 0.35 : kept.length > 60 ? 0.6 : 0.85;
      const traces = groups(kept).map((group) => ({
        type: "scatter", mode: kept.length > 300 ? "lines" : "lines+markers", connectgaps: false, hoverinfo: "text+x", opacity,
        marker: { size: 4 }, line: { color: group.color, width: 1.5 }, name: group.name, ...points(group.trials) }));
      for (const trace of traces) trace.marker.color = trace.line.color;
      if (kept.includes(data.best)) traces.push({
        type: "scatter", mode: "lines", hoverinfo: "text+x", line: { color: css("--ink"), width: 3.5 }, name: "best trial", ...points([data.best]) });
      Plotly.react(canvas, traces, themed({
        height: 420, margin: { l: 55, r: 10, t: 10, b: 45 }, showlegend: true, hovermode: "closest",
        legend: { title: { text: select.value } }, xaxis: { title: { text: "epoch", standoff: 6 }, rangemode: "tozero" }, yaxis: { title: { text: data.objective } },
      }), config);
    }

    head();
    if (select) colors();
    refresh();
    document.getElementById("reset").addEventListener("click", reset);
    return { brush, refresh };
  }

  // --- Begin.
  const nav = document.querySelector("nav");
  for (const section of document.querySelectorAll("main > section")) {
    const link = document.createElement("a");
    link.href = `#${section.id}`;
    link.textContent = section.querySelector("h2").textContent;
    nav.append(link);
  }
  const trials = data.trials ? trialsOf(data.trials) : null;
  const all = figures.map((node) => draw(node).then(() => {
    if (node.dataset.figure === "parallel") node.on("plotly_restyle", () => trials.brush(node));
  }));
  dark.addEventListener("change", () => {
    figures.forEach(draw);
    if (trials) trials.refresh();
  });
  Promise.all(all).then(() => { document.body.dataset.drawn = "yes"; });
})();
