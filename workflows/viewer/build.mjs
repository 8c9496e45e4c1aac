// Bundles the page into the Python package, where the wheel takes it from; --watch is not offered: a build takes 50 ms.
import { build } from "esbuild";
import { cpSync, mkdirSync, rmSync, readFileSync, writeFileSync } from "node:fs";

const out = new URL("../unetpp_workflows/viewer/static/", import.meta.url).pathname;
rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
await build({
  entryPoints: { app: "src/main.ts", style: "src/style.css" },
  bundle: true,
  minify: true,
  target: "es2022",
  format: "iife",
  outdir: out,
  legalComments: "none",
});
cpSync("src/index.html", `${out}index.html`);
const licence = readFileSync("node_modules/openseadragon/LICENSE.txt", "utf8");
writeFileSync(`${out}LICENSES.txt`, `app.js contains OpenSeadragon (https://openseadragon.github.io):\n\n${licence}`);
