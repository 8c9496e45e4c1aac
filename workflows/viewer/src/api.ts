// What the server answers, and how it is asked.
export interface Entry {
  id: string; version: string; name: string; model: string; output: string; status: string; zooms: number; fingerprint: string; area: number | null;
  unit: string | null; objects: number | null; uncertainty: number | null; verdict?: string;
}
export interface ClassInfo { value: number; name: string; color: [number, number, number]; background: boolean }
export interface Figure { name: string; px: number; area: number | null; unit: string; objects: number | null }
export interface Details extends Entry {
  height: number; width: number; side: number; spacing: { x: number; y: number; unit: string } | null;
  crs: string | null; transform: [number, number, number, number, number, number] | null; classes: ClassInfo[];
  maps: Record<string, string[]>; figures: Figure[];
}
export type Ring = [number, number][];
export interface Feature {
  id: string; geometry: { type: string; coordinates: Ring[] | Ring[][] };
  properties: { class: string; measurements: Record<string, number> };
}
export interface Objects { features: Feature[]; complete: boolean; note?: string }
export interface Review {
  id: string; verdict: string; note: string; reviewer: string; when: string; label: string | null; region: Ring | null;
}

async function get<T>(path: string, init?: RequestInit): Promise<T> {
  const answer = await fetch(path, init);
  if (!answer.ok) throw new Error(refusal(await answer.text()));
  return (await answer.json()) as T;
}
/** What went wrong, of a JSON object or, where the token is missing, plain text. */
function refusal(text: string): string {
  try { return (JSON.parse(text) as { error: string }).error; } catch { return text.trim(); }
}

export const images = () => get<{ images: Entry[] }>("/api/images").then((found) => found.images);
export const details = (id: string) => get<Details>(`/api/images/${id}`);
export const objects = (of: Entry, box: number[], signal?: AbortSignal) =>
  get<Objects>(`/api/images/${of.id}/objects?version=${of.version}&box=${box.map((v) => v.toFixed(2)).join(",")}`, signal ? { signal } : {});
export const reviews = (id: string) => get<{ reviews: Review[] }>(`/api/images/${id}/reviews`).then((f) => f.reviews);
export const review = (of: Entry, statement: object) =>
  get<Review>(`/api/images/${of.id}/reviews?version=${of.version}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(statement),
  });
/** The version keeps a browser from showing what it has of another result that had this address; the server refuses an old one. */
export const tileUrl = (of: Entry, layer: string, z: number, row: number, col: number, query = "") =>
  `/api/images/${of.id}/tiles/${layer}/${z}/${row}/${col}?version=${of.version}${query}`;
/** Why a picture was not loaded, which a browser does not say of pictures. */
export async function fault(url: string): Promise<string> {
  try {
    const answer = await fetch(url);
    return answer.ok ? "open the image again in the list, or reload the page" : refusal(await answer.text());
  } catch (error) { return (error as Error).message; }
}
