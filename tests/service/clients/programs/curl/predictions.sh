#!/usr/bin/env bash
# curl and jq, with the lines that the guides of 2023 print: predictions. A function's comment says what it shows.
. "$(dirname "$0")/../check.sh"

# POST /predictions: JSON without a Content-Type, the version as a bare id; polled at urls.get.
check_create() {
  local made
  made=$(api -X POST -d "{\"version\": \"$(version)\", \"input\": $SAY}" "$V1/predictions")
  expect status starting "$(jq -r .status <<< "$made")"
  expect answer "$SPOKEN" "$(ended "$(jq -r .urls.get <<< "$made")" | jq -r '.output | join("")')"
}

# POST /predictions: The version as owner/name:id, and as owner/name.
check_create_by_names() {
  local name
  for name in "meta/llama-2-7b-chat:$(version)" meta/llama-2-7b-chat; do
    expect status 201 "$(status -d "{\"version\": \"$name\", \"input\": $SAY}" "$V1/predictions")"
  done
}

# POST /predictions: Prefer: wait answers whole, says Preference-Applied, and counts what is left.
check_wait() {
  local found
  found=$(headers -H 'Prefer: wait=10' -d "{\"input\": $SAY}" "$CHAT/predictions")
  grep -q '^preference-applied: wait=10$' <<< "$found" || { echo "$found" >&2; exit 1; }
  grep -q '^ratelimit-remaining: [0-9]' <<< "$found" || { echo "$found" >&2; exit 1; }
  found=$(api -H 'Prefer: wait' -d "{\"input\": $SAY}" "$CHAT/predictions")
  expect answer "$SPOKEN" "$(jq -r '.output | join("")' <<< "$found")"
}

# POST /predictions: Prefer: wait=0 and wait=61 are refused.
check_wait_out_of_range() {
  local seconds
  for seconds in 0 61; do
    expect "wait=$seconds" 4 "$(status -H "Prefer: wait=$seconds" -d "{\"input\": $SAY}" "$CHAT/predictions" | cut -c1)"
  done
}

# POST /predictions: Cancel-After takes 90s, 5m, 1h30m45s and bare seconds, and sets the deadline.
check_cancel_after() {
  local after wanted made
  while read -r after wanted; do
    made=$(api -H "Cancel-After: $after" -d "{\"input\": $SAY}" "$CHAT/predictions")
    expect "$after" "$wanted" "$(jq '(.deadline | sub("\\.[0-9]+"; "") | fromdate) - (.created_at | sub("\\.[0-9]+"; "") | fromdate)' <<< "$made")"
  done <<< $'90s 90\n5m 300\n1h30m45s 5445\n20 20'
  expect '1s' 4 "$(status -H 'Cancel-After: 1s' -d "{\"input\": $SAY}" "$CHAT/predictions" | cut -c1)"
}

# GET /predictions/{id}: A deadline that passed before the start ends as aborted, without an error.
check_aborted() {
  expect ended '["aborted",null]' "$(api "$V1/predictions/$ABORTED" | jq -c '[.status, .error]')"
}

# POST /predictions: An unknown key of the body is named, and refused.
check_unknown_key() {
  local found
  found=$(api -d "{\"input\": $SAY, \"inputs\": {}}" "$CHAT/predictions")
  expect status 422 "$(jq .status <<< "$found")"
  grep -q inputs <<< "$(jq -r .detail <<< "$found")" || { echo "$found" >&2; exit 1; }
}

# POST /predictions: What is no JSON is refused in one sentence, as problem+json.
check_no_json() {
  local body
  for body in '{oops' '[]' '{"input": 1}'; do
    expect "$body" 4 "$(status -d "$body" "$CHAT/predictions" | cut -c1)"
  done
  headers -d '{oops' "$CHAT/predictions" | grep -q '^content-type: application/problem+json' || exit 1
}

# POST /predictions: invalid_fields name type, field and description of each wrong input.
check_invalid_fields() {
  local found
  found=$(api -d '{"input": {"temperature": 9, "top_k": "all"}}' "$CHAT/predictions")
  expect fields '["","input.temperature","input.top_k"]' "$(jq -c '[.invalid_fields[].field | sub("^input$"; "")] | sort' <<< "$found")"
  expect types '["invalid_type","number_lte","required"]' "$(jq -c '[.invalid_fields[].type] | sort' <<< "$found")"
}

# GET urls.stream: Plain events: output with ids, then done; without a token.
check_stream() {
  local made events
  made=$(api -d "{\"input\": $SAY}" "$CHAT/predictions")
  events=$(curl -s -N -H 'Accept: text/event-stream' "$(jq -r .urls.stream <<< "$made")")
  expect text "$SPOKEN" "$(awk '/^event: output/ {on = 1} /^$/ {on = 0} on && /^data: / {printf "%s", substr($0, 7)}' <<< "$events")"
  expect done 'data: {}' "$(grep -A3 '^event: done' <<< "$events" | grep '^data')"
  expect ids "$(grep -c '^event: output' <<< "$events")" "$(grep -A2 '^event: output' <<< "$events" | grep -c '^id: [0-9]')"
}

# GET urls.stream: A browser of another site may read it, and goes on after the last event it saw.
check_stream_again() {
  local url last
  url=$(api -H 'Prefer: wait' -d "{\"input\": $SAY}" "$CHAT/predictions" | jq -r .urls.stream)
  headers "$url" | grep -q '^access-control-allow-origin: \*' || { echo 'no access-control-allow-origin' >&2; exit 1; }
  last=$(curl -s "$url" | grep '^id: ' | head -1 | cut -c5-)
  expect events "$(($(curl -s "$url" | grep -c '^event: output') - 1))" \
    "$(curl -s -H "Last-Event-ID: $last" "$url" | grep -c '^event: output')"
}

# GET urls.stream: The stream of a failed prediction ends with error and done.
check_stream_of_a_failed_one() {
  local url events
  url=$(api -d "{\"input\": {\"prompt\": \"x\", \"replicate_weights\": \"$RECEIVER/no-such-weights.tar\"}}" "$CHAT/predictions" | jq -r .urls.stream)
  events=$(curl -s "$url")
  grep -A2 '^event: error' <<< "$events" | grep '^data' | cut -c7- | jq -e .detail > /dev/null || { echo "$events" >&2; exit 1; }
  expect done 'data: {"reason":"error"}' "$(grep -A2 '^event: done' <<< "$events" | grep '^data' | sed 's/: "/:"/')"
}

# POST /predictions/{id}/cancel: An empty body cancels, and answers the object.
check_cancel() {
  local made
  made=$(api -d "{\"input\": $LONG}" "$CHAT/predictions")
  expect status canceled "$(api -X POST "$(jq -r .urls.cancel <<< "$made")" | jq -r .status)"
}

# GET /predictions: A page of 100, whose next is absolute, and leads back by previous.
check_pages() {
  local page
  page=$(api "$V1/predictions")
  expect length 100 "$(jq '.results | length' <<< "$page")"
  [[ $(jq -r .next <<< "$page") == "$V1/predictions?cursor="* ]] || { jq .next <<< "$page" >&2; exit 1; }
  expect previous null "$(jq .previous <<< "$page")"
  expect back "$(jq -r '.results[-1].id' <<< "$page")" \
    "$(api "$(api "$(jq -r .next <<< "$page")" | jq -r .previous)" | jq -r '.results[-1].id')"
}

# GET /predictions: A cursor that is none is refused.
check_bad_cursor() { expect status 4 "$(status "$V1/predictions?cursor=nonsense" | cut -c1)"; }

main "$@"
