// One deep-zoom picture with its layers and outlines; coordinates are level-0 pixels of the source.
import OpenSeadragon from "openseadragon";
import * as api from "./api";

export interface Shown { labels: number; hidden: number[]; map: string; mapOpacity: number }
interface Layer { key: string; item: OpenSeadragon.TiledImage | null }
const SVG = "http://www.w3.org/2000/svg";

export class Stage {
  readonly viewer: OpenSeadragon.Viewer;
  readonly objects: SVGGElement;
  readonly regions: SVGGElement;
  readonly marks: SVGGElement;
  onView: () => void = () => {};
  onClick: (x: number, y: number) => void = () => {};
  onFailure: (url: string) => void = () => {};
  private readonly svg: SVGSVGElement;
  private readonly group: SVGGElement;
  private layers = new Map<string, Layer>();
  private split: number | null = null;

  constructor(readonly element: HTMLElement, readonly details: api.Details, at: [number, number, number] | null) {
    element.replaceChildren();
    this.viewer = new OpenSeadragon.Viewer({
      element, drawer: "canvas", showNavigationControl: false, animationTime: 0.35, springStiffness: 9,
      maxZoomPixelRatio: 16, minZoomImageRatio: 0.6, visibilityRatio: 0.3, imageLoaderLimit: 8, maxImageCacheCount: 400,
      crossOriginPolicy: false,
      keyboardNavEnabled: false,  // its keys turn and mirror the picture under the outlines; the page has its own
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: true }, imageSmoothingEnabled: true,
    } as OpenSeadragon.Options);
    this.svg = document.createElementNS(SVG, "svg");
    this.group = document.createElementNS(SVG, "g");
    this.objects = document.createElementNS(SVG, "g");
    this.regions = document.createElementNS(SVG, "g");
    this.marks = document.createElementNS(SVG, "g");
    this.group.append(this.objects, this.regions, this.marks);
    this.svg.append(this.group);
    element.append(this.svg);
    this.viewer.addHandler("update-viewport", () => this.moved());
    this.viewer.addHandler("resize", () => this.moved());
    this.viewer.addHandler("canvas-click", (event) => {
      if (event.quick) { const p = this.toImage(event.position.x, event.position.y); this.onClick(p[0], p[1]); }
    });
    this.viewer.addHandler("tile-load-failed", (event) => this.onFailure(event.tile.getUrl()));
    this.add("source", "source", 1, "", () => {
      if (at) this.goTo(at, true); else this.viewer.viewport.goHome(true);
      this.moved();
    });
  }

  show(shown: Shown, right: api.Details | null, split: number): void {
    this.layer("labels", this.details, "labels", shown.labels, labelQuery(this.details, shown.hidden));
    const other = right?.classes ?? [];
    if (right) this.layer("right", right, "labels", shown.labels, labelQuery({ classes: other }, shown.hidden));
    else this.drop("right");
    if (shown.map) this.layer("map", this.details, shown.map, shown.mapOpacity, "");
    else this.drop("map");
    this.split = right ? split : null;
    this.clip();
  }

  /** Centre (x, y) and screen pixels per image pixel. */
  at(): [number, number, number] {
    const centre = this.viewer.viewport.getCenter(true);
    return [centre.x * this.details.width, centre.y * this.details.width, this.scale()];
  }
  scale(): number {
    return (this.viewer.viewport.getZoom(true) * this.viewer.viewport.getContainerSize().x) / this.details.width;
  }
  goTo(at: [number, number, number], immediately = false): void {
    const { viewport } = this.viewer, width = this.details.width;
    viewport.zoomTo((at[2] * width) / viewport.getContainerSize().x, undefined, immediately);
    viewport.panTo(new OpenSeadragon.Point(at[0] / width, at[1] / width), immediately);
  }
  fit(ring: api.Ring): void {
    const xs = ring.map((p) => p[0]), ys = ring.map((p) => p[1]), w = this.details.width;
    const [x, y] = [Math.min(...xs), Math.min(...ys)];
    const box = new OpenSeadragon.Rect(x / w, y / w, (Math.max(...xs) - x) / w, (Math.max(...ys) - y) / w);
    this.viewer.viewport.fitBoundsWithConstraints(new OpenSeadragon.Rect(
      box.x - box.width * 0.3, box.y - box.height * 0.3, box.width * 1.6, box.height * 1.6));
  }
  /** Visible box x0, y0, x1, y1. */
  box(): [number, number, number, number] {
    const b = this.viewer.viewport.getBounds(true), w = this.details.width;
    return [b.x * w, b.y * w, (b.x + b.width) * w, (b.y + b.height) * w];
  }
  toImage(x: number, y: number): [number, number] {
    const p = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y), true), w = this.details.width;
    return [p.x * w, p.y * w];
  }
  path(parent: SVGGElement, rings: api.Ring[], name: string, colour = ""): SVGPathElement {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("d", rings.map((ring) => `M${ring.map((p) => p.join(" ")).join("L")}Z`).join(""));
    if (name) made.setAttribute("class", name);
    if (colour) made.style.stroke = colour;
    parent.append(made);
    return made;
  }
  /** Let the next drag draw a ring; resolves with it, or with null when `abort` ends it. */
  draw(abort: AbortSignal): Promise<api.Ring | null> {
    this.element.classList.add("drawing");
    let ring: api.Ring = [], path: SVGPathElement | null = null;
    return new Promise((resolve) => {
      const done = new AbortController();
      const finish = (result: api.Ring | null) => {
        done.abort(); path?.remove(); this.element.classList.remove("drawing"); resolve(result);
      };
      abort.addEventListener("abort", () => finish(null), { signal: done.signal });
      const point = (event: PointerEvent): [number, number] => {
        const r = this.svg.getBoundingClientRect(), { width, height } = this.details;
        const [x, y] = this.toImage(event.clientX - r.left, event.clientY - r.top);
        const inside = (v: number, size: number) => Math.round(Math.min(Math.max(v, 0), size) * 100) / 100;
        return [inside(x, width), inside(y, height)];
      };
      const on = (kind: "pointerdown" | "pointermove" | "pointerup" | "pointercancel", act: (e: PointerEvent) => void) =>
        this.svg.addEventListener(kind, (e) => { e.preventDefault(); e.stopPropagation(); act(e); }, { signal: done.signal });
      on("pointerdown", (event) => {
        ring = [point(event)];
        path?.remove();
        path = this.path(this.marks, [ring], "draft");
        this.svg.setPointerCapture(event.pointerId);
      });
      on("pointermove", (event) => {
        const last = ring.at(-1);
        if (!path || !last) return;
        const next = point(event);
        if (Math.hypot(next[0] - last[0], next[1] - last[1]) * this.scale() < 3 || ring.length >= 4000) return;
        ring.push(next);
        path.setAttribute("d", `M${ring.map((p) => p.join(" ")).join("L")}Z`);
      });
      on("pointerup", () => { if (ring.length >= 3) finish(ring); });
      on("pointercancel", () => { ring = []; });
    });
  }
  close(): void { this.viewer.destroy(); this.element.replaceChildren(); }

  private moved(): void {
    if (!this.viewer.world.getItemCount()) return;
    const p = this.viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true), s = this.scale();
    this.group.setAttribute("transform", `matrix(${s} 0 0 ${s} ${p.x} ${p.y})`);
    this.clip();
    this.onView();
  }
  private clip(): void {
    const left = this.layers.get("labels")?.item, right = this.layers.get("right")?.item;
    const { width, height } = this.details;
    if (this.split === null) {
      // Every change of a clip asks for another frame: without the question this would never rest.
      if (left?.getClip()) left.setClip(null);
      return;
    }
    const x = Math.min(Math.max(this.toImage(this.split * this.element.clientWidth, 0)[0], 0), width);
    const rect = (x0: number, x1: number) => new OpenSeadragon.Rect(x0, 0, Math.max(x1 - x0, 1e-6), height);
    if (this.clipped === x && this.clippedItem === right) return;
    this.clipped = x;
    this.clippedItem = right;
    left?.setClip(rect(0, x));
    right?.setClip(rect(x, width));
  }
  private clipped = NaN;
  private clippedItem: OpenSeadragon.TiledImage | null | undefined = null;
  private layer(slot: string, of: api.Details, name: string, opacity: number, query: string): void {
    const key = `${of.id}/${name}${query}`, old = this.layers.get(slot);
    if (old?.key === key) { old.item?.setOpacity(opacity); return; }
    this.drop(slot);
    this.add(slot, name, opacity, query, undefined, of);
  }
  private drop(slot: string): void {
    const old = this.layers.get(slot);
    this.layers.delete(slot);
    if (old?.item) this.viewer.world.removeItem(old.item);
  }
  private add(slot: string, name: string, opacity: number, query: string, then?: () => void, of = this.details): void {
    const made: Layer = { key: `${of.id}/${name}${query}`, item: null };
    this.layers.set(slot, made);
    const { width, height, side, zooms } = this.details;
    const source = new OpenSeadragon.TileSource({
      width, height, tileSize: side, tileOverlap: 0, minLevel: 0, maxLevel: zooms - 1,
      getTileUrl: (level: number, x: number, y: number) => api.tileUrl(of, name, zooms - 1 - level, y, x, query),
    } as unknown as OpenSeadragon.TileSourceOptions);
    this.viewer.addTiledImage({
      tileSource: source as unknown as string, x: 0, y: 0, width: 1, opacity,
      success: (event: unknown) => {
        const { item } = event as { item: OpenSeadragon.TiledImage };
        if (this.layers.get(slot) !== made) { this.viewer.world.removeItem(item); return; }
        made.item = item;
        this.clipped = NaN;
        this.clip();
        then?.();
      },
    } as unknown as Parameters<OpenSeadragon.Viewer["addTiledImage"]>[0]);
  }
}

function labelQuery(of: { classes: api.ClassInfo[] }, hidden: number[]): string {
  const seen = of.classes.filter((c) => !c.background && !hidden.includes(c.value)).map((c) => c.value);
  return `&show=${seen.join(".")}`;
}
