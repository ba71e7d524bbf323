# What the programs for curl share; check.py says what each thing is.
set -uo pipefail
V1=$API/v1
CHAT=$V1/models/meta/llama-2-7b-chat
TRAININGS=$V1/models/meta/llama-2-7b/versions/4841472f9a9d279cf03ba0a8f633b13eccd0e0a033d3af0c9b58830982d33132/trainings
SAY='{"prompt": "Say it.", "json_schema": "{\"const\": \"It is red.\"}", "max_new_tokens": 100}'
SPOKEN='"It is red."'
LONG='{"prompt": "Go on.", "min_new_tokens": 8000, "max_new_tokens": 8000, "temperature": 1}'
export SAY SPOKEN

# Ask with the token as the old guides write it.
api() { curl -s -H "Authorization: Token $REPLICATE_API_TOKEN" "$@"; }
# Print the status of an answer.
status() { api -o /dev/null -w '%{http_code}' "$@"; }
# Print the headers of an answer, in lower case.
headers() { api -o /dev/null -D - "$@" | tr -d '\r' | tr '[:upper:]' '[:lower:]'; }
version() { api "$CHAT" | jq -r .latest_version.id; }
# Print the object that an address shows at its end.
ended() {
  local found
  for _ in $(seq 300); do
    found=$(api "$1")
    case $(jq -r .status <<< "$found") in succeeded | failed | canceled) break ;; esac
    sleep 0.2
  done
  printf '%s' "$found"
}
# expect NAME WANTED FOUND
expect() { [ "$2" = "$3" ] || { echo "$1: expected $2, found $3" >&2; exit 1; }; }

# Run the checks that are named.
main() {
  local name found seconds started
  for name in "$@"; do
    started=$EPOCHREALTIME
    if found=$("check_$name" 2>&1 > /dev/null); then found=null; else found=$(jq -Rs . <<< "${found:-failed}"); fi
    seconds=$(jq -n "$EPOCHREALTIME - $started")
    jq -nc --arg name "$name" --argjson found "$found" --argjson seconds "$seconds" '{$name, $found, $seconds}'
  done
}
