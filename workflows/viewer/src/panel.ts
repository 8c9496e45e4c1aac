// Layers, figures and the chosen object as the panel shows them.
import type { Details, Entry, Feature } from "./api";
import { area, by, h, number } from "./dom";
import type { State } from "./state";

const css = (color: number[]) => `rgb(${color.join(" ")})`;

function slider(name: string, value: number, change: (value: number) => void): HTMLInputElement {
  const made = h("input", { type: "range", min: "0", max: "1", step: "0.05", "aria-label": name });
  made.value = String(value);
  made.addEventListener("input", () => change(Number(made.value)));
  return made;
}

export function layers(of: Details, state: State, change: (part: Partial<State>) => void): void {
  const classes = of.classes.filter((c) => !c.background).map((c) => h("label", { className: "row" },
    h("input", { type: "checkbox", checked: !state.hidden.includes(c.value), "data-class": c.value, onchange: (e: Event) => {
      const on = (e.target as HTMLInputElement).checked;
      change({ hidden: on ? state.hidden.filter((v) => v !== c.value) : [...state.hidden, c.value] });
    } }),
    h("i", { className: "swatch", style: { background: css(c.color) } }), h("span", { title: c.name }, c.name)));
  const maps: [string, string][] = [];
  if (of.maps.uncertainty) maps.push(["uncertainty", "uncertainty"]);
  (of.maps.probabilities ?? []).forEach((name, k) => maps.push([`probabilities.${k}`, `probability of ${name}`]));
  const map = h("select", { id: "map", "aria-label": "Map", onchange: (e: Event) => change({ map: (e.target as HTMLSelectElement).value }) },
    h("option", { value: "" }, "no map"), ...maps.map(([value, text]) => h("option", { value }, text)));
  map.value = state.map;
  by("layers").replaceChildren(
    h("div", { className: "layer" }, h("div", { className: "row" }, h("span", {}, "Labels")),
      slider("Opacity of labels", state.labels, (labels) => change({ labels })), ...classes),
    h("div", { className: "layer" }, h("label", { className: "row wrap" }, h("input", { id: "outlines", type: "checkbox", checked: state.objects,
      onchange: (e: Event) => change({ objects: (e.target as HTMLInputElement).checked }) }), h("span", {}, "Outlines"),
      h("span", { id: "outlines-note", className: "quiet" }))),
    maps.length ? h("div", { className: "layer" }, map, state.map ? slider("Opacity of the map", state.mapOpacity, (mapOpacity) => change({ mapOpacity })) : "") : "",
  );
}

export function compare(others: Entry[], state: State, change: (part: Partial<State>) => void): void {
  by("compare-section").hidden = !others.length;
  const choice = h("select", { id: "with", "aria-label": "Compare with", onchange: (e: Event) => change({ with: (e.target as HTMLSelectElement).value }) },
    h("option", { value: "" }, "one result"), ...others.map((o) => h("option", { value: o.id }, `${o.model} (${o.output})`)));
  choice.value = state.with;
  const mode = (value: State["mode"], text: string) =>
    h("button", { "aria-pressed": String(state.mode === value), "data-mode": value, onclick: () => change({ mode: value }) }, text);
  by("compare").replaceChildren(h("div", { className: "stack" }, choice,
    state.with ? h("div", { className: "group" }, mode("side", "Side by side"), mode("swipe", "Swipe")) : ""));
}

export function figures(of: Details): void {
  const rows = of.figures.map((f) => h("tr", {}, h("td", {}, f.name), h("td", {}, area(f.area, f.unit)),
    h("td", {}, f.objects === null ? "" : f.objects.toLocaleString("en"))));
  const size = `${of.width.toLocaleString("en")} × ${of.height.toLocaleString("en")} px`;
  const spacing = of.spacing ? `, ${number(of.spacing.x)} ${of.spacing.unit.replace("um", "µm")}/px` : "";
  by("figures").replaceChildren(
    of.figures.length ? h("table", {}, h("tr", {}, h("th", {}, "class"), h("th", {}, "area"), h("th", {}, "objects")), ...rows) : "not finished",
    h("p", { className: "quiet", style: { margin: "8px 0 0", whiteSpace: "normal" } }, size + spacing + (of.crs ? `, ${of.crs}` : "")));
}

export function selection(of: Details, found: Feature | null): void {
  by("selection-section").hidden = found === null;
  if (!found) return;
  const info = of.classes.find((c) => c.name === found.properties.class);
  by("selection").replaceChildren(
    h("div", { className: "row" }, h("i", { className: "swatch", style: { background: css(info?.color ?? [128, 128, 128]) } }), h("span", {}, found.properties.class)),
    h("table", {}, ...Object.entries(found.properties.measurements).map(([name, value]) =>
      h("tr", {}, h("td", {}, name.replaceAll("_", " ").replace("^2", "²").replace("m2", "m²")), h("td", {}, number(value))))));
}
