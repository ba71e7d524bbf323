#!/usr/bin/env bash
# curl and jq, with the lines that the guides of 2023 print: uploads, trainings, files and routes. A function's comment says what it shows.
. "$(dirname "$0")/../check.sh"

# Upload: The two steps of 2023: upload_url takes the bytes, serving_url gives them to anyone.
check_upload() {
  local urls
  urls=$(api -X POST "$V1/upload/data.jsonl")
  expect put 200 "$(curl -s -o /dev/null -w '%{http_code}' -X PUT -H 'Content-Type: application/jsonl' --upload-file "$DATA" "$(jq -r .upload_url <<< "$urls")")"
  curl -s "$(jq -r .serving_url <<< "$urls")" | cmp - "$DATA" >&2 || exit 1
}

# Upload: Chunked, as replicate's own program of 2023 sends it.
check_upload_in_chunks() {
  local urls
  urls=$(api -X POST "$V1/upload/data.jsonl")
  expect put 200 "$(curl -s -o /dev/null -w '%{http_code}' -T - "$(jq -r .upload_url <<< "$urls")" < "$DATA")"
  curl -s "$(jq -r .serving_url <<< "$urls")" | cmp - "$DATA" >&2 || exit 1
}

# Upload: More bytes than a file may have are 413, as problem+json, also when nobody said how many.
check_upload_too_large() {
  local url
  url=$(api -X POST "$V1/upload/data.jsonl" | jq -r .upload_url)
  expect told 413 "$(head -c 3000000 /dev/zero | curl -s -o /dev/null -w '%{http_code}' -T - "$url")"
  expect length 413 "$(curl -s -o /dev/null -w '%{http_code}' -T <(head -c 3000000 /dev/zero) "$url")"
}

# POST /trainings: JSON without a Content-Type on an upload, followed at urls.get, canceled there.
check_train() {
  local urls made
  urls=$(api -X POST "$V1/upload/data.jsonl")
  curl -s -T "$DATA" "$(jq -r .upload_url <<< "$urls")"
  made=$(api -X POST -d "{\"destination\": \"$OWNER/trained\", \"input\": {\"train_data\": $(jq .serving_url <<< "$urls")}}" "$TRAININGS")
  expect status starting "$(jq -r .status <<< "$made")"
  api -X POST "$(jq -r .urls.cancel <<< "$made")" > /dev/null
  expect ended canceled "$(ended "$(jq -r .urls.get <<< "$made")" | jq -r .status)"
}

# POST /trainings: A destination that is not there is 404, as problem+json.
check_train_for_nobody() {
  local found
  found=$(api -d "{\"destination\": \"$OWNER/nothing\", \"input\": {\"train_data\": \"data:,\"}}" "$TRAININGS")
  expect problem '["The specified training destination does not exist",404]' "$(jq -c '[.detail, .status]' <<< "$found")"
}

# GET /trainings/{id}: output has both keys or is null; the version is one of the destination's.
check_training() {
  local found version
  for _ in $(seq 600); do
    found=$(api "$V1/trainings/$TRAINING")
    expect keys true "$(jq '.output == null or (.output | has("weights") and has("version"))' <<< "$found")"
    [ "$(jq .completed_at <<< "$found")" = null ] || break
    sleep 0.2
  done
  expect status succeeded "$(jq -r .status <<< "$found")"
  version=$(jq -r .output.version <<< "$found")
  expect versions "${version##*:}" "$(api "$V1/models/$OWNER/trained/versions" | jq -r '.results[].id')"
}

# POST /files: content and metadata as parts with types; the file's address gives metadata, never bytes.
check_files() {
  local file
  file=$(api -F "content=@$DATA;type=application/jsonl;filename=rows.jsonl" -F 'metadata={"of": "curl"};type=application/json' "$V1/files")
  expect metadata '["rows.jsonl","application/jsonl","curl"]' "$(jq -c '[.name, .content_type, .metadata.of]' <<< "$file")"
  expect again "$(jq -r .id <<< "$file")" "$(api "$(jq -r .urls.get <<< "$file")" | jq -r .id)"
  expect delete 204 "$(status -X DELETE "$V1/files/$(jq -r .id <<< "$file")")"
  expect gone 404 "$(status "$(jq -r .urls.get <<< "$file")")"
}

# QUERY /models: The method QUERY with a bare text.
check_search() {
  local names
  names=$(api -X QUERY -H 'Content-Type: text/plain' -d 7b-chat "$V1/models" | jq -r '.results[] | "\(.owner)/\(.name)"')
  grep -qx meta/llama-2-7b-chat <<< "$names" || { echo "$names" >&2; exit 1; }
}

# GET /account: The same at /v1, at the root and at /v1/v1; Token and Bearer.
check_routes() {
  local prefix
  for prefix in /v1 '' /v1/v1; do
    expect "$prefix" "$OWNER" "$(api "$API$prefix/account" | jq -r .username)"
    expect "$prefix" "$OWNER" "$(curl -s -H "Authorization: Bearer $REPLICATE_API_TOKEN" "$API$prefix/account" | jq -r .username)"
  done
}

# GET /account: No token, or a wrong one, is 401 in Replicate's words.
check_wrong_token() {
  local found
  for header in 'X-Nothing: 1' 'Authorization: Token r8_wrong' 'Authorization: Basic abc'; do
    found=$(curl -s -H "$header" "$V1/account")
    expect "$header" '["Unauthenticated","You did not pass a valid authentication token",401]' "$(jq -c '[.title, .detail, .status]' <<< "$found")"
  done
}

# GET /models/{owner}/{name}: A model has every key that the real one has, the empty ones too.
check_model() {
  expect keys '[]' "$(api "$CHAT" | jq -c '["url", "owner", "name", "description", "visibility", "github_url", "paper_url", "license_url", "run_count", "cover_image_url", "default_example", "latest_version"] - keys')"
}

# GET /nothing: A route that is not there is 404 as JSON.
check_nothing() {
  expect status 404 "$(api "$V1/nothing" | jq .status)"
  expect method 405 "$(status -X PUT "$V1/account")"
}

main "$@"
