// What the address holds: enough to see the same again.
export interface State {
  id: string; at: [number, number, number] | null; labels: number; hidden: number[]; map: string; mapOpacity: number;
  objects: boolean; with: string; mode: "side" | "swipe"; split: number;
}
export const fresh: State = {
  id: "", at: null, labels: 0.55, hidden: [], map: "", mapOpacity: 0.8, objects: true, with: "", mode: "side", split: 0.5,
};
export function read(hash: string): State {
  const found = new URLSearchParams(hash.replace(/^#/, ""));
  const share = (name: string, other: number) => {
    const value = Number(found.get(name) ?? NaN);
    return value >= 0 && value <= 1 ? value : other;
  };
  const at = (found.get("at") ?? "").split(",").map(Number);
  return {
    id: found.get("id") ?? "",
    at: at.length === 3 && at.every(Number.isFinite) ? (at as [number, number, number]) : null,
    labels: share("labels", fresh.labels),
    hidden: (found.get("hide") ?? "").split(".").filter(Boolean).map(Number).filter(Number.isInteger),
    map: found.get("map") ?? "",
    mapOpacity: share("map-opacity", fresh.mapOpacity),
    objects: found.get("outlines") !== "0",
    with: found.get("with") ?? "",
    mode: found.get("mode") === "swipe" ? "swipe" : "side",
    split: share("split", fresh.split),
  };
}
export function write(state: State): string {
  const found = new URLSearchParams();
  found.set("id", state.id);
  if (state.at) found.set("at", `${state.at[0].toFixed(1)},${state.at[1].toFixed(1)},${state.at[2].toPrecision(6)}`);
  if (state.labels !== fresh.labels) found.set("labels", String(state.labels));
  if (state.hidden.length) found.set("hide", state.hidden.join("."));
  if (state.map) { found.set("map", state.map); found.set("map-opacity", String(state.mapOpacity)); }
  if (!state.objects) found.set("outlines", "0");
  if (state.with) {
    found.set("with", state.with);
    found.set("mode", state.mode);
    if (state.mode === "swipe") found.set("split", state.split.toFixed(3));
  }
  return `#${found.toString().replaceAll("%2C", ",")}`;
}
