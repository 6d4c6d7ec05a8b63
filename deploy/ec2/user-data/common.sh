# shellcheck shell=bash disable=SC2154 # the variables stand before this, in what `cluster` sends
# The beginning of every instance's user data.
set -euo pipefail
# Whoever forgets an instance does not pay for it for ever: it ends when it shuts down.
shutdown -h "+$minutes"
for program in aws curl; do
  command -v "$program" >/dev/null || { apt-get update -qq && apt-get install -qq -y awscli curl; }
done
export AWS_REGION=$region AWS_DEFAULT_REGION=$region
objects=s3://$bucket/$prefix

# Installs programs that were uploaded.
programs() {
  for program; do
    aws s3 cp --no-progress "$objects/bin/$program" "/usr/local/bin/$program"
    chmod 755 "/usr/local/bin/$program"
  done
}
