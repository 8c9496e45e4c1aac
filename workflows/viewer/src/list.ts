// The list of images: found, sorted, chosen.
import type { Entry } from "./api";
import { tileUrl } from "./api";
import { MARKS, area, by, h, number, verdictClass } from "./dom";

export class ImageList {
  entries: Entry[] = [];
  private current = "";
  constructor(private readonly choose: (id: string) => void) {
    by("search").addEventListener("input", () => this.draw());
    by("sort").addEventListener("change", () => this.draw());
  }
  set(entries: Entry[]): void { this.entries = entries; this.draw(); }
  mark(id: string): void {
    this.current = id;
    for (const button of by("images").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === id));
      if (button.dataset.id === id) button.scrollIntoView({ block: "nearest" });
    }
  }
  visible(): Entry[] {
    const wanted = by<HTMLInputElement>("search").value.trim().toLowerCase();
    const sort = by<HTMLSelectElement>("sort").value as "name" | "area" | "uncertainty";
    const found = this.entries.filter((e) => `${e.name} ${e.model}`.toLowerCase().includes(wanted));
    return found.sort((a, b) =>
      (sort === "name" ? 0 : (b[sort] ?? -Infinity) > (a[sort] ?? -Infinity) ? 1 : (b[sort] ?? -Infinity) < (a[sort] ?? -Infinity) ? -1 : 0)
      || a.name.localeCompare(b.name) || a.model.localeCompare(b.model));
  }
  neighbour(step: number): string | undefined {
    const found = this.visible();
    const at = found.findIndex((e) => e.id === this.current);
    return found[Math.min(Math.max(at + step, 0), found.length - 1)]?.id;
  }
  draw(): void {
    const models = new Set(this.entries.map((e) => e.model)).size > 1;
    const outputs = new Set(this.entries.map((e) => e.output)).size > 1;
    by("images").replaceChildren(...this.visible().map((entry) => {
      const facts = [
        models && entry.model, outputs && entry.output, entry.status !== "done" && entry.status,
      ].filter(Boolean).join(" · ");
      const figures = [
        entry.area !== null && area(entry.area, entry.unit),
        entry.uncertainty !== null && `uncertainty ${number(entry.uncertainty)}`,
      ].filter(Boolean).join(" · ");
      const picture = (layer: string) =>
        h("img", { src: tileUrl(entry, layer, entry.zooms - 1, 0, 0), alt: "", loading: "lazy" });
      return h("li", {}, h("button", { "data-id": entry.id, "aria-current": String(entry.id === this.current), title: entry.name,
        onclick: () => this.choose(entry.id) },
        h("span", { className: "thumb" }, picture("source"), picture("labels")),
        h("span", { className: "name" }, entry.name),
        h("span", { className: "facts" }, figures, facts && h("br"), facts),
        entry.verdict ? h("span", { className: `mark ${verdictClass(entry.verdict)}`, title: entry.verdict }, MARKS[entry.verdict] ?? "")
          : h("span")));
    }));
  }
}
