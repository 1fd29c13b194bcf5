// Bundle editor.mjs into one file of the Python package, with the licences of what is in it.

import { build } from "esbuild";
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const to = join(here, "../../src/tunemath/course/web/static");
const made = await build({
  absWorkingDir: here,
  entryPoints: ["editor.mjs"],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  banner: { js: "/* CodeMirror 6, MIT: editor.LICENSE.txt; made by scripts/editor/build.mjs */" },
  outfile: join(to, "editor.js"),
});

const packages = new Set(
  Object.keys(made.metafile.inputs)
    .map((path) => path.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1])
    .filter(Boolean),
);
const byLicence = new Map();
for (const name of [...packages].sort()) {
  const folder = join(here, "node_modules", name);
  const { version } = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
  const licence = readFileSync(join(folder, "LICENSE"), "utf8").trim();
  byLicence.set(licence, [...(byLicence.get(licence) ?? []), `${name} ${version}`]);
}
const text = [...byLicence].map(([licence, names]) => `${names.join("\n")}\n\n${licence}\n`);
writeFileSync(join(to, "editor.LICENSE.txt"), `editor.js holds:\n\n${text.join("\n\n")}`);
