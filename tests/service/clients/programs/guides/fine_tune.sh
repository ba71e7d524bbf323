#!/usr/bin/env bash
# The guide of fine-tuning over HTTP: upload in two steps, training with a webhook, poll, prediction by version, poll.
set -euo pipefail
# Ask with the token as the guide writes it.
api() { curl -sS --fail-with-body -H "Authorization: Token $REPLICATE_API_TOKEN" "$@"; }
# Print the object behind an address, once it has succeeded.
wait_for() {
  local found
  while found=$(api "$1"); do
    case $(jq -r .status <<< "$found") in
      succeeded) printf '%s' "$found"; return ;;
      failed | canceled) jq -r .error <<< "$found" >&2; return 1 ;;
    esac
    sleep 0.5
  done
}
upload=$(api -X POST "$API/v1/upload/data.jsonl")
curl -sS --fail -X PUT -H 'Content-Type: application/jsonl' --upload-file "$DATA" "$(jq -r .upload_url <<< "$upload")"
hook=$RECEIVER/hook/guide
body=$(jq --arg to "$OWNER/guided" --arg hook "$hook" '{
  destination: $to, input: {train_data: .serving_url, num_train_epochs: 1},
  webhook: $hook, webhook_events_filter: ["start", "logs", "completed"]
}' <<< "$upload")
version=4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132
training=$(api -X POST -d "$body" "$API/v1/models/meta/llama-2-7b/versions/$version/trainings")
trained=$(wait_for "$API/v1/trainings/$(jq -r .id <<< "$training")" | jq -r .output.version)
# Told of the start first, of logs that grow, and of the end last, with what GET shows.
until told=$(curl -s "$hook") && [ "$(jq -r '.[-1].body | fromjson.status' <<< "$told")" = succeeded ]; do sleep 0.2; done
jq -e --arg version "$trained" '[.[].body | fromjson] | .[0].status == "processing" and .[0].output == null
  and ([.[].logs | length] | . == sort) and .[-1].output.version == $version' <<< "$told" > /dev/null
body=$(jq -n --arg version "${trained##*:}" '{version: $version, input: {prompt: "What is red?"}}')
prediction=$(api -X POST -d "$body" "$API/v1/predictions")
wait_for "$(jq -r .urls.get <<< "$prediction")" | jq -er '.output | join("")'
