"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const format = (x) => Math.abs(x) >= 1e4 || (x !== 0 && Math.abs(x) < 1e-3) ? x.toExponential(2) : x.toPrecision(4);
  // round numbers from low to high; on a logarithmic axis powers of ten, or what there is between two of them
  const ticks = (low, high, log) => {
    let step = log && high - low > 1.5 ? Math.ceil((high - low) / 6) : 10 ** Math.floor(Math.log10((high - low) / 4));
    if (!log || high - low <= 1.5) step *= [5, 2, 1].find((m) => (high - low) / (m * step) >= 3) || 1;
    const found = [];
    for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(v);
    return found;
  };
  const short = (v) => Number(v.toPrecision(3)).toString();
  const colours = (size) => "colours from " + short(-size) + " to " + short(size);
  // a section and its link, hidden where there is no script or nothing to show
  const reveal = (id) => document.querySelectorAll("#" + id + ', nav a[href="#' + id + '"]').forEach((node) => { node.hidden = false; });
  const options = (select, names) => names.forEach((name, i) => select.add(new Option(name, i)));

  // curves through training: hover for values with their errors
  const curves = data.curves;
  if (curves.length) {
    reveal("curves");
    const W = 640, H = 340, M = { l: 64, r: 14, t: 12, b: 40 }, NS = "http://www.w3.org/2000/svg", svg = $("chart");
    const add = (name, attributes, text) => {
      const node = document.createElementNS(NS, name);
      for (const key in attributes) node.setAttribute(key, attributes[key]);
      if (text !== undefined) node.textContent = text;
      svg.appendChild(node);
      return node;
    };
    options($("quantity"), curves.map((c) => c.name));
    const draw = () => {
      const c = curves[$("quantity").value], log = $("log").checked;
      svg.replaceChildren();
      const f = (y) => log ? Math.log10(y) : y;
      const values = c.lines.flatMap((l) => l.y).filter((y) => Number.isFinite(f(y)));
      let low = Math.min(...values.map(f)), high = Math.max(...values.map(f));
      if (!(high > low)) { low -= 1; high += 1; }
      const t0 = c.time[0], t1 = c.time[c.time.length - 1] || 1;
      const X = (t) => M.l + (t - t0) / (t1 - t0) * (W - M.l - M.r), Y = (y) => H - M.b - (f(y) - low) / (high - low) * (H - M.t - M.b);
      ticks(low, high, log).forEach((v) => {
        const y = H - M.b - (v - low) / (high - low) * (H - M.t - M.b);
        add("line", { x1: M.l, x2: W - M.r, y1: y, y2: y, stroke: "#eee" });
        add("text", { x: M.l - 6, y: y + 4, "text-anchor": "end", "font-size": 11 }, short(log ? 10 ** v : v));
      });
      ticks(t0, t1, false).forEach((t) => {
        add("text", { x: X(t), y: H - M.b + 16, "text-anchor": "middle", "font-size": 11 }, short(t));
      });
      add("text", { x: (W + M.l) / 2, y: H - 6, "text-anchor": "middle", "font-size": 12 }, "time");
      c.lines.forEach((l) => {
        const points = c.time.map((t, i) => [X(t), Y(l.y[i])]).filter((p) => Number.isFinite(p[1]));
        add("polyline", { points: points.map((p) => p.join(",")).join(" "), fill: "none", stroke: l.color, "stroke-width": l.limit ? 2.4 : 1.5 });
      });
      svg.onmousemove = (event) => {
        const box = svg.getBoundingClientRect(), t = t0 + ((event.clientX - box.left) * W / box.width - M.l) / (W - M.l - M.r) * (t1 - t0);
        let i = 0;
        c.time.forEach((s, j) => { if (Math.abs(s - t) < Math.abs(c.time[i] - t)) i = j; });
        $("readout").textContent = "t = " + format(c.time[i]) + ":  " +
          c.lines.map((l) => l.name + " " + format(l.y[i]) + " ± " + format(l.se[i])).join(",  ");
      };
    };
    const legend = () => {
      $("legend").replaceChildren(...curves[0].lines.map((l) => {
        const span = document.createElement("span");
        span.textContent = "— " + l.name + "  ";
        span.style.color = l.color;
        return span;
      }));
    };
    $("quantity").onchange = $("log").onchange = draw;
    legend();
    draw();
  }

  // kernels of the limit and of networks, step by step
  const kernels = data.kernels;
  if (kernels.length) {
    reveal("kernels");
    options($("kernel"), kernels.map((k) => k.name));
    options($("width"), data.widths.map((n) => "N = " + n));
    $("width").value = data.widths.length - 1;
    $("step").max = data.times.length - 1;
    $("step").value = data.times.length - 1;
    const paint = (canvas, matrix, level) => {
      const n = Math.round(Math.sqrt(matrix.length)), context = canvas.getContext("2d");
      canvas.width = canvas.height = n;
      const image = context.createImageData(n, n);
      matrix.forEach((value, i) => {
        const s = Math.max(-1, Math.min(1, value / level)), fade = Math.round(255 * (1 - Math.abs(s)));
        image.data.set(s > 0 ? [255 - Math.round(60 * s), fade, fade, 255] : [fade, fade, 255 + Math.round(80 * s), 255], 4 * i);
      });
      context.putImageData(image, 0, 0);
    };
    const show = () => {
      const k = kernels[$("kernel").value], step = +$("step").value, limit = k.limit[step], mean = k.mean[$("width").value][step];
      const difference = mean.map((value, i) => value - limit[i]);
      const size = Math.max(...limit.map(Math.abs), 1e-30), off = Math.max(...difference.map(Math.abs), 1e-30);
      paint($("limit"), limit, size);
      paint($("mean"), mean, size);
      paint($("difference"), difference, off);
      $("time").textContent = "t = " + format(data.times[step]);
      $("scale").textContent = colours(size);
      $("scale-difference").textContent = colours(off);
    };
    ["kernel", "width"].forEach((id) => { $(id).onchange = show; });
    $("step").oninput = show;
    show();
  }
  document.body.dataset.ready = "yes";
})();
