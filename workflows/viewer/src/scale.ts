// Lengths and coordinates for reading: scale bar, pixels, micrometres or metres, and the CRS.
import type { Details } from "./api";
import { number } from "./dom";

const STEPS: Record<string, [number, string][]> = {
  um: [[1e3, "mm"], [1, "µm"], [1e-3, "nm"]],
  m: [[1e3, "km"], [1, "m"], [1e-2, "cm"]],
};

/** Length in screen pixels and its text: 1, 2 or 5 times a power of ten, at most `most` screen pixels. */
export function bar(details: Details, scale: number, most = 140): { pixels: number; text: string } {
  const spacing = details.spacing, units = spacing && STEPS[spacing.unit];
  const per = (spacing && units ? spacing.x : 1) / scale;
  const power = 10 ** Math.floor(Math.log10(per * most));
  const length = ([5, 2, 1].find((k) => k * power <= per * most) ?? 1) * power;
  return { pixels: length / per, text: spacing && units ? inUnits(length, units) : `${number(length)} px` };
}

export function place(details: Details, x: number, y: number): string {
  const lines = [`x ${Math.floor(x).toLocaleString("en")}  y ${Math.floor(y).toLocaleString("en")} px`];
  const spacing = details.spacing;
  if (spacing?.unit === "um") lines.push(`${number(x * spacing.x)}, ${number(y * spacing.y)} µm`);
  if (details.transform) {
    const [a, b, c, d, e, f] = details.transform;
    const east = a * x + b * y + c, north = d * x + e * y + f;
    const places = Math.max(Math.abs(a), Math.abs(e)) < 0.01 ? 6 : 1;
    lines.push(`${east.toFixed(places)}, ${north.toFixed(places)}  ${details.crs ?? ""}`);
  }
  return lines.join("\n");
}

function inUnits(length: number, units: [number, string][]): string {
  const [factor, unit] = units.find(([factor]) => length >= factor * 0.999) ?? units.at(-1)!;
  return `${number(length / factor)} ${unit}`;
}
