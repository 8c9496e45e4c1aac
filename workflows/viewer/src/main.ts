// Puts the page together: one state, kept in the address; stages, list and panel follow it.
import OpenSeadragon from "openseadragon";
import * as api from "./api";
import { by } from "./dom";
import { ImageList } from "./list";
import * as panel from "./panel";
import { Reviewer } from "./review";
import { bar, place } from "./scale";
import { Stage } from "./stage";
import * as states from "./state";

const MOST_PIXELS_ACROSS = 6000;

class App {
  private state = states.read(location.hash);
  private list = new ImageList((id) => void this.open(id));
  private stage: Stage | null = null;
  private second: Stage | null = null;
  private right: api.Details | null = null;
  private reviewer: Reviewer | null = null;
  private pending: AbortController | null = null;
  private opening = 0;
  private saving = 0;
  private written = "";

  async start(): Promise<void> {
    this.theme(localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
    if (innerWidth < 860) document.body.classList.add("no-list", "no-panel");
    this.buttons();
    addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => {
      if (location.hash === this.written) return;
      this.state = states.read(location.hash);
      void this.open(this.state.id, true);
    });
    await this.refresh();
    const known = this.list.entries.some((e) => e.id === this.state.id);
    if (this.state.id && !known) this.tell("This address names an image that is not shown here.");
    await this.open(known ? this.state.id : (this.list.visible()[0]?.id ?? ""), known);
  }

  private async refresh(): Promise<void> { this.list.set(await api.images()); }

  private async open(id: string, keep = false): Promise<void> {
    if (!id) return;
    const turn = ++this.opening;
    const before = this.state, same = this.list.entries.find((e) => e.id === before.id)?.fingerprint;
    if (!keep) {
      const entry = this.list.entries.find((e) => e.id === id);
      // The same image by another model keeps its place.
      this.state = { ...before, id, with: "", at: entry && entry.fingerprint === same ? before.at : null, map: "", hidden: [] };
    }
    let found: api.Details;
    try { found = await api.details(id); } catch (error) {
      if (turn === this.opening) this.state = { ...before, id: this.stage?.details.id ?? before.id };
      this.tell(`Not opened: ${(error as Error).message}`);
      return;
    }
    if (turn !== this.opening) return;
    this.reviewer?.close();
    this.stage?.close();
    this.second?.close();
    this.second = null;
    this.right = null;
    document.title = `${found.name} · unetpp`;
    by("title").textContent = found.name;
    by("model").textContent = found.model;
    panel.figures(found);
    panel.selection(found, null);
    this.stage = new Stage(by("stage-a"), found, this.state.at);
    this.stage.onView = () => this.viewed();
    this.stage.onFailure = (url) => void this.failed(url);
    this.stage.onClick = (x, y) => void this.choose(x, y);
    this.reviewer = new Reviewer(this.stage, () => void this.refresh(), (text) => this.tell(text));
    this.list.mark(id);
    // The list knows it as it was: a run has gone on, and what is asked of the old version is refused.
    if (this.list.entries.find((e) => e.id === id)?.version !== found.version) void this.refresh();
    await this.change({}, true);
  }

  private async change(part: Partial<states.State>, first = false): Promise<void> {
    const stage = this.stage;
    if (!stage) return;
    this.state = { ...this.state, ...part };
    const { state } = this;
    const others = this.list.entries.filter((e) => e.fingerprint === stage.details.fingerprint && e.id !== stage.details.id);
    if (state.with && !others.some((o) => o.id === state.with)) state.with = "";
    if (state.map && !hasMap(stage.details, state.map)) state.map = "";
    if (first || !("labels" in part || "mapOpacity" in part || "split" in part)) {
      panel.layers(stage.details, state, (p) => void this.change(p));
      panel.compare(others, state, (p) => void this.change(p));
    }
    if ((this.right?.id ?? "") !== state.with) this.right = state.with ? await api.details(state.with) : null;
    if (stage !== this.stage) return;
    this.arrange();
    stage.show(state, state.mode === "swipe" ? this.right : null, state.split);
    this.second?.show({ ...state, map: this.right && hasMap(this.right, state.map) ? state.map : "" }, null, 0);
    this.outlined = "";
    void this.outline();
    this.save();
  }

  private arrange(): void {
    const { state, right, stage } = this;
    const swipe = right !== null && state.mode === "swipe", side = right !== null && state.mode === "side";
    by("swipe").hidden = by("swipe-line").hidden = !swipe;
    by<HTMLInputElement>("swipe").value = String(state.split);
    by("swipe-line").style.left = `calc(${state.split * 100}% - 1px)`;
    by("tags").hidden = right === null;
    const tag = (of: api.Details | null | undefined) => (of ? `${of.model} · ${of.output}` : "");
    by("tag-a").textContent = tag(stage?.details);
    by("tag-b").textContent = tag(right);
    by("stage-b").hidden = !side;
    if (side && this.second?.details.id !== right.id) {
      this.second?.close();
      this.second = new Stage(by("stage-b"), right, stage?.at() ?? null);
      const second = this.second;
      second.onView = () => this.follow(second, this.stage);
      second.onFailure = (url) => void this.failed(url);
    } else if (!side && this.second) {
      this.second.close();
      this.second = null;
    }
  }

  private following = false;
  private follow(from: Stage, to: Stage | null): void {
    if (!to || this.following) return;
    const a = from.at(), b = to.at();
    if (Math.hypot(a[0] - b[0], a[1] - b[1]) * a[2] < 0.5 && Math.abs(a[2] / b[2] - 1) < 1e-4) return;
    this.following = true;
    to.goTo(a, true);
    this.following = false;
  }

  private viewed(): void {
    const stage = this.stage;
    if (!stage) return;
    const { pixels, text } = bar(stage.details, stage.scale());
    by("scale-bar").style.width = `${pixels}px`;
    by("scale-text").textContent = text;
    if (this.second) this.follow(stage, this.second);
    // While another image is being opened, this one still moves: its place is not the other's.
    if (stage.details.id === this.state.id) this.state.at = stage.at();
    this.save();
    clearTimeout(this.outlining);
    this.outlining = setTimeout(() => void this.outline(), 180) as unknown as number;
  }

  private save(): void {
    if (this.saving) return;
    this.saving = setTimeout(() => {
      this.saving = 0;
      this.written = states.write(this.state);
      history.replaceState(null, "", this.written);
    }, 150) as unknown as number;
  }

  private outlining = 0;
  private outlined = "";
  private async outline(): Promise<void> {
    const stage = this.stage;
    if (!stage) return;
    const box = stage.box(), far = box[2] - box[0] > MOST_PIXELS_ACROSS;
    const asked = `${stage.details.id} ${this.state.objects} ${box.join(" ")}`;
    if (asked === this.outlined) return;
    this.outlined = asked;
    this.pending?.abort();
    this.note(this.state.objects && far ? "zoom in" : "");
    if (!this.state.objects || far) { stage.objects.replaceChildren(); return; }
    this.pending = new AbortController();
    try {
      const found = await api.objects(stage.details, box, this.pending.signal);
      if (stage !== this.stage) return;
      stage.objects.replaceChildren();
      this.note(found.note ?? (found.complete ? "" : "zoom in"));
      if (!found.complete) return;
      const colours = new Map(stage.details.classes.map((c) => [c.name, `rgb(${c.color.join(" ")})`]));
      const background = new Set(stage.details.classes.filter((c) => c.background).map((c) => c.name));
      for (const feature of found.features) {
        if (background.has(feature.properties.class)) continue;
        for (const rings of polygons(feature)) stage.path(stage.objects, rings, "", colours.get(feature.properties.class));
      }
    } catch (error) {
      if ((error as Error).name !== "AbortError") this.tell(`Outlines: ${(error as Error).message}`);
    }
  }

  private async choose(x: number, y: number): Promise<void> {
    const stage = this.stage;
    if (!stage) return;
    let hit: api.Feature | undefined;
    try {
      const found = await api.objects(stage.details, [x, y, x, y]);
      hit = found.features.filter((f) => polygons(f).some((rings) => inside(rings, x, y))).at(-1);
    } catch (error) { this.tell((error as Error).message); return; }
    if (stage !== this.stage) return;
    this.unselect();
    if (!hit) return;
    for (const rings of polygons(hit)) stage.path(stage.marks, rings, "chosen");
    panel.selection(stage.details, hit);
    document.body.classList.remove("no-panel");
  }
  private unselect(): void {
    this.stage?.marks.querySelectorAll(".chosen").forEach((old) => old.remove());
    if (this.stage) panel.selection(this.stage.details, null);
  }

  private note(text: string): void { by("outlines-note").textContent = text; }
  private async failed(url: string): Promise<void> { this.tell(`Parts of the picture were not loaded: ${await api.fault(url)}`); }
  private message = 0;
  private tell(text: string): void {
    by("message").textContent = text;
    clearTimeout(this.message);
    if (text) this.message = setTimeout(() => { by("message").textContent = ""; }, 8000) as unknown as number;
  }
  private theme(name: string): void { document.documentElement.dataset.theme = name; }
  private turn(): void {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", name);
    this.theme(name);
  }
  private zoom(factor: number): void { this.stage?.viewer.viewport.zoomBy(factor); this.stage?.viewer.viewport.applyConstraints(); }
  private home(): void { this.stage?.viewer.viewport.goHome(); }

  private buttons(): void {
    const on = (id: string, act: () => void) => by(id).addEventListener("click", act);
    on("zoom-in", () => this.zoom(1.6));
    on("zoom-out", () => this.zoom(1 / 1.6));
    on("home", () => this.home());
    on("theme", () => this.turn());
    on("help-open", () => by<HTMLDialogElement>("help").showModal());
    on("toggle-list", () => document.body.classList.toggle("no-list"));
    on("toggle-panel", () => document.body.classList.toggle("no-panel"));
    by("swipe").addEventListener("input", () => void this.change({ split: Number(by<HTMLInputElement>("swipe").value) }));
    by("stages").addEventListener("pointermove", (event) => {
      const stage = this.stage;
      if (!stage) return;
      const r = stage.element.getBoundingClientRect();
      const [x, y] = stage.toImage((event.clientX - r.left) % (r.width + 2), event.clientY - r.top);
      const { width, height } = stage.details;
      by("position").textContent = x >= 0 && y >= 0 && x < width && y < height ? place(stage.details, x, y) : "";
    });
  }

  private key(event: KeyboardEvent): void {
    if (by<HTMLDialogElement>("help").open) return;
    const target = event.target as HTMLElement;
    if (event.key === "Escape") {
      if (takes(target, event.key)) target.blur(); else { this.reviewer?.stop(); this.unselect(); }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || takes(target, event.key)) return;
    const pan = (x: number, y: number) => {
      const v = this.stage?.viewer.viewport;
      if (v) { const b = v.getBounds(); v.panBy(new OpenSeadragon.Point(b.width * x, b.height * y)); v.applyConstraints(); }
    };
    const step = (by: number) => { const id = this.list.neighbour(by); if (id && id !== this.state.id) void this.open(id); };
    const acts: Record<string, () => void> = {
      ArrowLeft: () => pan(-0.25, 0), ArrowRight: () => pan(0.25, 0), ArrowUp: () => pan(0, -0.25), ArrowDown: () => pan(0, 0.25),
      "+": () => this.zoom(1.6), "=": () => this.zoom(1.6), "-": () => this.zoom(1 / 1.6), "0": () => this.home(),
      j: () => step(1), k: () => step(-1), t: () => this.turn(), "?": () => by<HTMLDialogElement>("help").showModal(),
      l: () => { void this.change({ labels: this.state.labels ? 0 : states.fresh.labels }, true); },
      o: () => { void this.change({ objects: !this.state.objects }); }, d: () => void this.reviewer?.draw(),
      a: () => void this.reviewer?.image("accepted"), r: () => void this.reviewer?.image("rejected"),
      c: () => void this.reviewer?.image("to correct"),
      b: () => document.body.classList.toggle("no-list"), p: () => document.body.classList.toggle("no-panel"),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }
}

function hasMap(of: api.Details, map: string): boolean {
  const [kind, plane] = map.split(".");
  return plane === undefined ? kind === "uncertainty" && "uncertainty" in of.maps : Number(plane) < (of.maps[kind ?? ""]?.length ?? 0);
}
/** Whether a control has its own use for a key: text and choices for all, sliders for arrows. */
function takes(control: HTMLElement, key: string): boolean {
  if (control.matches("input[type=range]")) return key.startsWith("Arrow");
  return control.matches("textarea, select, input:not([type=checkbox])");
}
function polygons(feature: api.Feature): api.Ring[][] {
  const { type, coordinates } = feature.geometry;
  return type === "Polygon" ? [coordinates as api.Ring[]] : type === "MultiPolygon" ? (coordinates as api.Ring[][]) : [];
}
/** Even-odd rule over all rings. */
function inside(rings: api.Ring[], x: number, y: number): boolean {
  let odd = false;
  for (const ring of rings) {
    for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
      const [xi, yi] = ring[i]!, [xj, yj] = ring[j]!;
      if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
    }
  }
  return odd;
}

void new App().start();
