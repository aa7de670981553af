// Classify pictures with transformers.js and no network: `node classify.mjs MODELS NAME PICTURES`.
// Prints a JSON list with the best label of each PNG in the folder PICTURES, in order of names.
import fs from "node:fs";
import path from "node:path";
import { env, pipeline } from "@huggingface/transformers";

const [models, name, folder] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = models;
const classify = await pipeline("image-classification", name, { dtype: "fp32", device: "cpu" });
const labels = [];
for (const file of fs.readdirSync(folder).sort()) {
  const [best] = await classify(path.join(folder, file), { top_k: 1 });
  labels.push(best.label);
}
console.log(JSON.stringify(labels));
