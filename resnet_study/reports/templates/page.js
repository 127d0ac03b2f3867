"use strict";
// Tables that sort and filter. They are whole and can be read without this script.

function sortKey(cell) {
  const text = cell.dataset.sort ?? cell.textContent.trim();
  const number = parseFloat(text.replaceAll(",", "").replace("−", "-").replace(/^\+/, ""));
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compareKeys(a, b, falling) {
  if ((a === "") !== (b === "")) return a === "" ? 1 : -1; // empty cells come last
  if (typeof a === typeof b) return (falling ? -1 : 1) * (typeof a === "number" ? a - b : a.localeCompare(b));
  return typeof a === "number" ? -1 : 1; // what is no number comes last
}

function sortTable(table, header) {
  const falling = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", falling ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [sortKey(row.cells[header.cellIndex]), row]);
  rows.sort(([a], [b]) => compareKeys(a, b, falling));
  body.append(...rows.map(([, row]) => row));
}

function addFilter(table) {
  const label = document.createElement("label"), input = document.createElement("input"), told = document.createElement("span");
  label.className = "filter";
  input.type = "search";
  told.setAttribute("role", "status");
  label.append("Rows with ", input, " ", told);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of table.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    told.textContent = words.length ? `${shown} of ${table.tBodies[0].rows.length}` : "";
  });
  (table.closest(".scroll") ?? table).before(label);
}

for (const table of document.querySelectorAll("table:not(.matrix)")) {
  if (!table.closest(".scroll")) { // of Markdown
    const place = document.createElement("div");
    place.className = "scroll";
    place.tabIndex = 0;
    place.setAttribute("role", "region");
    place.setAttribute("aria-label", "table");
    table.before(place);
    place.append(table);
  }
  if (!table.tHead || table.tBodies[0].rows.length < 2) continue;
  for (const header of table.tHead.rows[0].cells) {
    if (!header.textContent.trim()) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sortTable(table, header));
  }
  if (table.tBodies[0].rows.length > 5) addFilter(table);
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));

// Images that fell into a cell of the confusion matrix.

const store = document.getElementById("gallery");
if (store) {
  const { names, images } = JSON.parse(store.textContent);

  function describe(image, list) {
    const item = document.createElement("li"), picture = document.createElement("img");
    const right = image.label === image.predicted;
    item.className = right ? "right" : "wrong";
    picture.src = image.source;
    picture.alt = `image ${image.place}: ${names[image.label]}`;
    const text = `${names[image.predicted]} (${image.confidence.toFixed(1)}\u00a0%)`;
    item.append(picture, right ? `${text}, right` : `${text}, is ${names[image.label]} (${image.likelihood.toFixed(1)}\u00a0%)`);
    list.append(item);
  }

  const mistakes = images.filter((image) => image.label !== image.predicted).sort((a, b) => b.confidence - a.confidence);
  for (const image of mistakes.slice(0, 24)) describe(image, document.getElementById("mistakes"));

  const dialog = document.getElementById("cell");
  for (const button of document.querySelectorAll("button[data-cell]")) {
    button.addEventListener("click", () => {
      const [label, predicted] = button.dataset.cell.split(",").map(Number);
      const found = images.filter((image) => image.label === label && image.predicted === predicted);
      const kind = label === predicted ? "least confident" : "most confident";
      const count = Number(button.dataset.count);
      document.getElementById("cell-title").textContent =
        label === predicted ? `${names[label]}, rightly named` : `${names[label]}, taken for ${names[predicted]}`;
      document.getElementById("cell-count").textContent =
        `${count} image${count === 1 ? "" : "s"}` + (found.length < count ? `; the ${found.length} ${kind} are shown` : "");
      const list = document.getElementById("cell-images");
      list.replaceChildren();
      for (const image of found) describe(image, list);
      dialog.showModal();
    });
  }
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}

// Plots are drawn on canvas, which takes its colours when it is drawn. Browsers turn light to print, which is no reason to begin again.
let prints = false;
addEventListener("beforeprint", () => { prints = true; });
addEventListener("afterprint", () => { setTimeout(() => { prints = false; }, 1000); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (window.Bokeh && !prints) location.reload(); });
