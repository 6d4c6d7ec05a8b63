# shellcheck shell=bash disable=SC2154,SC2164 # the variables stand before this, in what `cluster` sends
# Makes data, waits for all servers and clients, replays the traces, and leaves a report in the bucket.
# Each client has files of its own: a replay evicts what it reads, before and after each trace.
cd "$(mktemp -d)"
exec >"client-$number.log" 2>&1
trap 'aws s3 cp --no-progress "client-$number.log" "$objects/reports/"' EXIT
programs flightcache-bench
flightcache-bench generate "$objects/data-$number/"
locations=
for server in $servers; do
  timeout 600 bash -c "until curl --fail --silent --show-error --max-time 5 http://$server:50052/readyz; do sleep 1; done"
  locations+=${locations:+,}grpc://$server:50051
done
# All begin at the same time, within a second or two.
echo ready | aws s3 cp - "$objects/ready/client-$number"
for ((tries = 0; tries < 600; tries++)); do
  [[ $(aws s3 ls "$objects/ready/" | wc -l) -lt $clients ]] || break
  sleep 1
done
# shellcheck disable=SC2086 # one word an argument
flightcache-bench replay --data "$objects/data-$number/" --servers "$locations" --latency 0s --json "client-$number.json" --html "client-$number.html" ${replay:-}
for file in json html; do aws s3 cp --no-progress "client-$number.$file" "$objects/reports/"; done
