// Makes elements; text is always text, so that no name can become markup.
type Child = Node | string | null | undefined | false;
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K, options: Record<string, unknown> = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value as EventListener);
    else if (name === "style") Object.assign(made.style, value);
    else if (name.includes("-") || name === "for") made.setAttribute(name, String(value));
    else (made as unknown as Record<string, unknown>)[name] = value;
  }
  made.append(...children.filter((c): c is Node | string => c !== null && c !== undefined && c !== false));
  return made;
}
export function by<T extends HTMLElement = HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}
const digits = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
export const number = (value: number) => digits.format(value);
export const area = (value: number | null, unit: string | null) =>
  value === null ? "–" : `${number(value)} ${(unit ?? "px").replace("mm2", "mm²").replace("m2", "m²")}`;
export const verdictClass = (verdict: string) => verdict.replace(" ", "-");
export const MARKS: Record<string, string> = { accepted: "✓", rejected: "✕", "to correct": "✎" };
