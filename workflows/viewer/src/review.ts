// The reviewer's part of the panel: verdicts on the image, regions with classes, notes.
import * as api from "./api";
import { MARKS, by, h, verdictClass } from "./dom";
import type { Stage } from "./stage";

const VERDICTS = ["accepted", "rejected", "to correct"] as const;
const ACTIONS: Record<string, string> = { accepted: "Accept", rejected: "Reject", "to correct": "Correct" };

export class Reviewer {
  private said: api.Review[] = [];
  /** Note on the image as typed and not stored yet. */
  private note: string | null = null;
  private draft: { ring: api.Ring; form: HTMLElement } | null = null;
  private drawing: AbortController | null = null;
  private closed = false;
  private readonly loaded: Promise<void>;
  constructor(private readonly stage: Stage, private readonly changed: () => void, private readonly tell: (text: string) => void) {
    by("review").replaceChildren();
    this.loaded = this.load();
  }
  /** Leave the panel to the next image; what was sent is still stored. */
  close(): void { this.closed = true; this.drawing?.abort(); }
  private get id(): string { return this.stage.details.id; }

  async load(): Promise<void> {
    try { this.said = await api.reviews(this.id); } catch (error) { this.tell(`Reviews: ${(error as Error).message}`); }
    this.show();
  }
  async image(verdict: string): Promise<void> {
    await this.loaded;
    const old = this.said.find((r) => r.id === "image");
    const note = this.note ?? old?.note ?? "";
    const stored = await this.send({ id: "image", verdict: old?.verdict === verdict && old.note === note ? "withdrawn" : verdict, note });
    if (stored) this.note = null;
  }
  async draw(): Promise<void> {
    if (this.drawing) { this.stop(); return; }
    this.drawing = new AbortController();
    this.show();
    this.tell("Drag around a region. Esc stops.");
    const ring = await this.stage.draw(this.drawing.signal);
    this.drawing = null;
    this.tell("");
    this.draft = ring && { ring, form: this.form(ring) };
    this.show();
    if (ring) by("draft-note").focus();
  }
  stop(): void { this.drawing?.abort(); this.drawing = null; this.draft = null; this.show(); }

  private async send(statement: object): Promise<boolean> {
    const reviewer = localStorage.getItem("reviewer") ?? "";
    try {
      await api.review(this.stage.details, { reviewer, ...statement });
    } catch (error) {
      this.tell(`Not stored: ${(error as Error).message}`);
      return false;
    }
    await this.load();
    this.changed();
    return true;
  }
  private show(): void {
    if (this.closed) return;
    const { stage } = this, image = this.said.find((r) => r.id === "image");
    stage.regions.replaceChildren();
    stage.marks.querySelectorAll(".draft").forEach((old) => old.remove());
    for (const said of this.said) if (said.region) stage.path(stage.regions, [said.region], `region ${verdictClass(said.verdict)}`);
    if (this.draft) stage.path(stage.marks, [this.draft.ring], "draft");
    const note = h("textarea", { id: "image-note", placeholder: "Note on the image", "aria-label": "Note on the image", value: this.note ?? image?.note ?? "",
      oninput: () => { this.note = note.value; } });
    by("review").replaceChildren(h("div", { className: "stack" },
      h("div", { className: "buttons thirds", role: "group" }, ...VERDICTS.map((v) => h("button", {
        "aria-pressed": String(image?.verdict === v), "data-verdict": v, onclick: () => void this.image(v),
      }, `${MARKS[v]} ${ACTIONS[v]}`))),
      note,
      image && h("div", { className: "quiet", style: { whiteSpace: "normal" } }, `${image.reviewer}, ${new Date(image.when).toLocaleString()}`),
      h("input", { type: "text", placeholder: "Your name", "aria-label": "Your name", value: localStorage.getItem("reviewer") ?? "",
        onchange: (e: Event) => localStorage.setItem("reviewer", (e.target as HTMLInputElement).value.trim()) }),
      this.draft ? this.draft.form : h("button", { id: "draw", "aria-pressed": String(this.drawing !== null), onclick: () => void this.draw() }, "Draw a region (d)"),
      ...this.said.filter((r) => r.region).map((r) => this.row(r)),
      this.said.some((r) => r.region) && h("a", { href: `/api/images/${this.id}/corrections.geojson`, download: "corrections.geojson" }, "Corrections as GeoJSON"),
    ));
  }
  private form(ring: api.Ring): HTMLElement {
    const verdict = h("select", { id: "draft-verdict", "aria-label": "Verdict" }, ...[...VERDICTS].reverse().map((v) => h("option", { value: v }, ACTIONS[v]!)));
    const label = h("select", { id: "draft-label", "aria-label": "Right class" }, ...this.stage.details.classes.map((c) => h("option", { value: c.name }, c.name)));
    const wanted = this.stage.details.classes.find((c) => !c.background);
    if (wanted) label.value = wanted.name;
    const row = h("label", { className: "row" }, h("span", {}, "should be"), label);
    verdict.addEventListener("change", () => { row.hidden = verdict.value !== "to correct"; });
    const note = h("textarea", { id: "draft-note", placeholder: "Note on the region", "aria-label": "Note on the region" });
    return h("div", { className: "stack said", id: "draft" }, verdict, row, note, h("div", { className: "buttons" },
      h("button", { id: "draft-save", className: "primary", onclick: () => void this.send({
        verdict: verdict.value, label: verdict.value === "to correct" ? label.value : null, note: note.value, region: ring,
      }).then((stored) => { if (stored) { this.draft = null; this.show(); } }) }, "Save region"),
      h("button", { onclick: () => this.stop() }, "Cancel")));
  }
  private row(said: api.Review): HTMLElement {
    const what = `${MARKS[said.verdict]} ${said.verdict}${said.label ? `: ${said.label}` : ""}`;
    return h("div", { className: "said region-row" },
      h("div", { className: "row" }, h("span", { className: verdictClass(said.verdict) }, what),
        h("button", { className: "icon", title: "Show", onclick: () => this.stage.fit(said.region!) }, "◎"),
        h("button", { className: "icon", title: "Withdraw", onclick: () => void this.send({ id: said.id, verdict: "withdrawn" }) }, "✕")),
      said.note && h("div", {}, said.note), h("div", { className: "quiet" }, said.reviewer));
  }
}
