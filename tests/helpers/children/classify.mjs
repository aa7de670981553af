// Classify pictures with transformers.js and no network:
// `node classify.mjs MODELS NAME PICTURES pipeline` by its pipeline, or with `graph` in place of the
// last word by model_with_preprocessing.onnx, which gets each picture's pixels as they are.
// Prints a JSON list with the best label of each PNG in the folder PICTURES, in order of names.
import fs from "node:fs";
import path from "node:path";
import {
  AutoModelForImageClassification,
  RawImage,
  Tensor,
  env,
  pipeline,
} from "@huggingface/transformers";

const [models, name, folder, way] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = models;
const options = { dtype: "fp32", device: "cpu" };

async function byPipeline() {
  const classify = await pipeline("image-classification", name, options);
  return async (file) => (await classify(file, { top_k: 1 }))[0].label;
}

async function byGraph() {
  const model = await AutoModelForImageClassification.from_pretrained(name, {
    ...options,
    model_file_name: "model_with_preprocessing",
  });
  return async (file) => {
    const picture = (await RawImage.read(file)).rgb();
    const shape = [1, picture.height, picture.width, 3];
    const { logits } = await model({ image: new Tensor("uint8", picture.data, shape) });
    return model.config.id2label[logits.data.indexOf(Math.max(...logits.data))];
  };
}

const answer = await (way === "graph" ? byGraph() : byPipeline());
const labels = [];
for (const file of fs.readdirSync(folder).sort()) labels.push(await answer(path.join(folder, file)));
console.log(JSON.stringify(labels));
