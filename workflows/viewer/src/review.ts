// The reviewer's part of the panel: verdicts on the image, regions with classes, notes.
import * as api from "./api";
import { MARKS, by, h, verdictClass } from "./dom";
import type { Stage } from "./stage";

const VERDICTS = ["accepted", "rejected", "to correct"] as const;
const ACTIONS: Record<string, string> = { accepted: "Accept", rejected: "Reject", "to correct": "Correct" };

interface Region { ring: api.Ring; verdict: string; label: string; note: string }
/** What was drawn, chosen and typed of an image and is not stored yet, and what is being stored. */
interface Draft { note: string | null; region: Region | null; sending: Promise<unknown> | null }
/** By the image's id: opening another image leaves them. */
const drafts = new Map<string, Draft>();

export class Reviewer {
  private said: api.Review[] = [];
  private readonly draft: Draft;
  private saving: Region | null = null;
  private drawing: AbortController | null = null;
  private closed = false;
  private readonly loaded: Promise<void>;
  constructor(private readonly stage: Stage, private readonly changed: () => void, private readonly tell: (text: string) => void) {
    by("review").replaceChildren();
    this.draft = drafts.get(this.id) ?? { note: null, region: null, sending: null };
    drafts.set(this.id, this.draft);
    this.loaded = this.load();
  }
  /** Leave the panel to the next image; what was sent is still stored. */
  close(): void { this.closed = true; this.drawing?.abort(); }
  private get id(): string { return this.stage.details.id; }

  async load(): Promise<void> {
    await this.draft.sending;
    try { this.said = await api.reviews(this.id); } catch (error) { this.tell(`Reviews: ${(error as Error).message}`); }
    this.show();
  }
  async image(verdict: string): Promise<void> {
    await this.loaded;
    const old = this.said.find((r) => r.id === "image");
    const note = this.draft.note ?? old?.note ?? "";
    await this.send({ id: "image", verdict: old?.verdict === verdict && old.note === note ? "withdrawn" : verdict, note },
      () => { if (this.draft.note === note) this.draft.note = null; });
  }
  async draw(): Promise<void> {
    if (this.drawing) { this.stop(); return; }
    this.drawing = new AbortController();
    this.show();
    this.tell("Drag around a region. Esc stops.");
    const ring = await this.stage.draw(this.drawing.signal);
    this.drawing = null;
    this.tell("");
    if (ring) {
      const { classes } = this.stage.details, likely = classes.find((c) => !c.background) ?? classes[0];
      this.draft.region = { verdict: "to correct", label: likely?.name ?? "", note: "", ...this.draft.region, ring };
    }
    this.show();
    if (ring) by("draft-note").focus();
  }
  /** End drawing or, where nothing is being drawn, drop the region. */
  stop(): void {
    if (this.drawing) this.drawing.abort(); else this.draft.region = null;
    this.drawing = null;
    this.show();
  }

  private async send(statement: object, stored: () => void = () => {}): Promise<void> {
    const reviewer = localStorage.getItem("reviewer") ?? "";
    const sent = api.review(this.stage.details, { reviewer, ...statement }).then(stored);
    this.draft.sending = Promise.allSettled([this.draft.sending, sent]);
    try { await sent; } catch (error) { this.tell(`Not stored: ${(error as Error).message}`); return; }
    await this.load();
    this.changed();
  }
  private show(): void {
    if (this.closed) return;
    const { stage } = this, image = this.said.find((r) => r.id === "image");
    stage.regions.replaceChildren();
    stage.marks.querySelectorAll(".draft").forEach((old) => old.remove());
    for (const said of this.said) if (said.region) stage.path(stage.regions, [said.region], `region ${verdictClass(said.verdict)}`);
    if (this.draft.region) stage.path(stage.marks, [this.draft.region.ring], "draft");
    const note = h("textarea", { id: "image-note", placeholder: "Note on the image", "aria-label": "Note on the image", value: this.draft.note ?? image?.note ?? "",
      oninput: () => { this.draft.note = note.value; } });
    by("review").replaceChildren(h("div", { className: "stack" },
      h("div", { className: "buttons thirds", role: "group" }, ...VERDICTS.map((v) => h("button", {
        "aria-pressed": String(image?.verdict === v), "data-verdict": v, onclick: () => void this.image(v),
      }, `${MARKS[v]} ${ACTIONS[v]}`))),
      note,
      image && h("div", { className: "quiet", style: { whiteSpace: "normal" } }, `${image.reviewer}, ${new Date(image.when).toLocaleString()}`),
      h("input", { type: "text", placeholder: "Your name", "aria-label": "Your name", value: localStorage.getItem("reviewer") ?? "",
        onchange: (e: Event) => localStorage.setItem("reviewer", (e.target as HTMLInputElement).value.trim()) }),
      this.draft.region ? this.form(this.draft.region) : h("button", { id: "draw", "aria-pressed": String(this.drawing !== null), onclick: () => void this.draw() }, "Draw a region (d)"),
      ...this.said.filter((r) => r.region).map((r) => this.row(r)),
      this.said.some((r) => r.region) && h("a", { href: `/api/images/${this.id}/corrections.geojson`, download: "corrections.geojson" }, "Corrections as GeoJSON"),
    ));
  }
  private form(region: Region): HTMLElement {
    const verdict = h("select", { id: "draft-verdict", "aria-label": "Verdict" }, ...[...VERDICTS].reverse().map((v) => h("option", { value: v }, ACTIONS[v]!)));
    const label = h("select", { id: "draft-label", "aria-label": "Right class" }, ...this.stage.details.classes.map((c) => h("option", { value: c.name }, c.name)));
    const row = h("label", { className: "row", hidden: region.verdict !== "to correct" }, h("span", {}, "should be"), label);
    verdict.value = region.verdict;
    verdict.addEventListener("change", () => { region.verdict = verdict.value; row.hidden = verdict.value !== "to correct"; });
    label.value = region.label;
    label.addEventListener("change", () => { region.label = label.value; });
    const note = h("textarea", { id: "draft-note", placeholder: "Note on the region", "aria-label": "Note on the region", value: region.note,
      oninput: () => { region.note = note.value; } });
    const save = h("button", { id: "draft-save", className: "primary", disabled: this.saving === region, onclick: () => void this.save(region) }, "Save region");
    return h("div", { className: "stack said", id: "draft" }, verdict, row, note, h("div", { className: "buttons" },
      save, h("button", { onclick: () => this.stop() }, "Cancel")));
  }
  private async save(region: Region): Promise<void> {
    const { ring, verdict, label, note } = region;
    this.saving = region;
    this.show();
    await this.send({ verdict, label: verdict === "to correct" ? label : null, note, region: ring },
      () => { if (this.draft.region === region) this.draft.region = null; });
    this.saving = null;
    this.show();
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
