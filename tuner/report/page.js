(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("bstune-data").textContent);
  const find = (id) => document.getElementById(id);
  const views = [];
  let picked = -1;

  // Charts. The page's own colours are in its style sheet, so that they follow light, dark and print by themselves.
  const config = {
    font: "system-ui, sans-serif", background: null, view: { stroke: null }, axis: { titleFontWeight: "normal", labelFontSize: 12, titleFontSize: 13 },
    legend: { labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" }, text: { fontSize: 12 },
  };
  const draw = async (chart) => {
    const spec = { ...chart.spec, width: "container", autosize: { type: "fit-x", contains: "padding" } };
    const { view } = await vegaEmbed(find(chart.id), spec, { actions: false, renderer: "svg", config });
    find(chart.id).querySelectorAll("svg").forEach((svg) => svg.setAttribute("aria-hidden", "true"));
    if (!chart.picks) return;
    views.push(view);
    view.addEventListener("click", (event, item) => {
      const number = item && item.datum && item.datum.trial;
      pick(Number.isInteger(number) && number !== picked ? number : -1);
    });
    find(chart.id).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) { event.preventDefault(); beside(step); }
    });
  };

  // The trial that is picked stands out in every chart and in the table.
  const numbers = data.trials.map((row) => row[0]);
  const beside = (step) => {
    if (!numbers.length) return;
    const at = numbers.indexOf(picked);
    pick(at < 0 ? numbers[step > 0 ? 0 : numbers.length - 1] : numbers[(at + step + numbers.length) % numbers.length]);
  };
  const pick = (number) => {
    picked = numbers.includes(number) ? number : -1;
    views.forEach((view) => view.signal("trial", picked).run());
    if (find("trial")) {
      find("trial").value = picked < 0 ? "" : picked;
      const row = picked < 0 ? null : data.trials[numbers.indexOf(picked)];
      find("picked").textContent = row
        ? `trial ${row[0]}: ${data.columns.map((c, i) => (c.brief && row[i] !== null ? `${c.title} ${shown(row[i], c)}` : "")).filter(Boolean).join(", ")}`
        : number >= 0 ? `There is no trial ${number}.` : "Click a curve or a dot, or enter a number.";
    }
    document.querySelectorAll("#trials tr[data-trial]").forEach((row) => {
      const on = Number(row.dataset.trial) === picked;
      row.classList.toggle("picked", on);
      row.querySelector("button").setAttribute("aria-pressed", String(on));
    });
    document.documentElement.dataset.picked = String(picked);
  };

  // The first chart that shows the picked trial comes into sight; the focus stays where it is.
  const reveal = () => {
    const shows = (chart) => chart.picks && (chart.spec.layer || []).some(
      (layer) => ((layer.data || {}).values || []).some((row) => row.trial === picked));
    const chart = picked < 0 ? null : data.charts.find(shows);
    if (chart) find(chart.id).scrollIntoView({ block: "center" });
  };

  // The table: text is text, whatever a study holds.
  const shown = (value, column) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "number") return String(value);
    return column.whole ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
  };
  // A table that its box cuts says so.
  const hint = () => document.querySelectorAll(".scroll").forEach((box) => {
    const wide = box.scrollWidth > box.clientWidth + 1, long = box.scrollHeight > box.clientHeight + 1;
    const note = box.previousElementSibling;
    note.hidden = !wide && !long;
    note.textContent = `${wide ? "Move the table sideways for more columns" : ""}${wide && long ? ", and " : ""}${
      long ? `${wide ? "down" : "Move the table down"} for more rows` : ""}.`;
  });
  addEventListener("resize", hint);
  const STEP = 250;
  let order = data.trials.slice(), rows = STEP, sorted = { column: 0, down: false };
  const cell = (kind, text, classes) => {
    const made = document.createElement(kind);
    made.textContent = text;
    if (classes) made.className = classes;
    return made;
  };
  const body = () => {
    const made = document.createDocumentFragment();
    for (const row of order.slice(0, rows)) {
      const line = document.createElement("tr");
      line.dataset.trial = row[0];
      data.columns.forEach((column, i) => {
        const kind = [column.text ? "text" : "", column.reason ? "reason" : ""].filter(Boolean).join(" ");
        const made = cell("td", i ? shown(row[i], column) : "", kind);
        if (!i) {
          const button = cell("button", String(row[0]));
          button.type = "button";
          button.setAttribute("aria-pressed", String(row[0] === picked));
          button.setAttribute("aria-label", `Show trial ${row[0]}`);
          button.addEventListener("click", () => { pick(row[0] === picked ? -1 : row[0]); reveal(); });
          made.append(button);
        }
        line.append(made);
      });
      line.classList.toggle("picked", row[0] === picked);
      made.append(line);
    }
    find("trials").tBodies[0].replaceChildren(made);
    find("more").hidden = rows >= order.length;
    hint();
    find("more").textContent = `Show more (${Math.max(0, order.length - rows).toLocaleString("en")} left)`;
  };
  const sort = (i) => {
    sorted = { column: i, down: sorted.column === i && !sorted.down };
    const sign = sorted.down ? -1 : 1;
    order.sort((a, b) => {
      if (a[i] === b[i]) return a[0] - b[0];
      if (a[i] === null) return 1;
      if (b[i] === null) return -1;
      return sign * (a[i] < b[i] ? -1 : 1);
    });
    document.querySelectorAll("#trials th").forEach((head, k) => {
      head.setAttribute("aria-sort", k !== i ? "none" : sorted.down ? "descending" : "ascending");
      head.querySelector("span").textContent = k !== i ? "" : sorted.down ? " ▾" : " ▴";
    });
    body();
  };
  if (find("trials")) {
    const head = document.createElement("tr");
    data.columns.forEach((column, i) => {
      const made = cell("th", "", column.text ? "text" : "");
      made.scope = "col";
      const button = cell("button", column.title);
      button.type = "button";
      button.append(cell("span", ""));
      button.addEventListener("click", () => sort(i));
      made.append(button);
      head.append(made);
    });
    find("trials").tHead.append(head);
    sorted = { column: 0, down: true };
    sort(0);
    find("more").addEventListener("click", () => { rows += 4 * STEP; body(); });
  }

  hint();
  if (find("trial")) {
    find("trial").addEventListener("change", () => pick(find("trial").value === "" ? -1 : Number(find("trial").value)));
    find("previous").addEventListener("click", () => beside(-1));
    find("next").addEventListener("click", () => beside(1));
    find("clear").addEventListener("click", () => pick(-1));
  }
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") pick(-1); });
  if (find("copy")) {
    find("copy").addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(find("paste").textContent);
        find("copy").textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(find("paste"));
      }
    });
  }
  Promise.all(data.charts.map(draw)).then(() => { document.documentElement.dataset.drawn = String(data.charts.length); });
})();
