#!/usr/bin/env bash
# Package → container → answer to a client, where no Docker daemon runs: buildah builds the Dockerfile as it is, on a
# Debian base, and the image's files are run as Docker would run them with the options of compose.yaml: by its user, on
# a read-only file system without capabilities, and in a network of its own that leads nowhere.
#
#     sudo bash tests/container.sh PACKAGE [WORK]
#
# It needs Debian's buildah, debootstrap, iproute2 and util-linux, root, and a network for the build. PYTHON is the
# Python of this project, by default python3. Prints one JSON line for each step.
set -euo pipefail
package=$1 work=${2:-$(mktemp -d)} python=${PYTHON:-python3}
builder=(buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run")
say() { printf '{"figure": "container", "step": "%s", "value": "%s"}\n' "$1" "$2"; }

"$python" -m hub_release.cli container "$package" "$work/container"

if ! "${builder[@]}" inspect --type image localhost/debian-python > /dev/null 2>&1; then
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/debian" > "$work/debootstrap.log"
    cp /etc/ssl/certs/ca-certificates.crt "$work/debian/etc/ssl/certs/"
    base=$("${builder[@]}" from scratch)
    "${builder[@]}" copy -q "$base" "$work/debian/" / > /dev/null
    "${builder[@]}" commit -q "$base" localhost/debian-python > /dev/null
fi
"${builder[@]}" build --isolation chroot --format docker --build-arg BASE=localhost/debian-python \
    --tag served "$work/container" > "$work/build.log" 2>&1
container=$("${builder[@]}" from served)
root=$("${builder[@]}" mount "$container")
say "MB that the image adds to its base" "$(du -sm "$root/venv" "$root/app" | awk '{s += $1} END {print s}')"

network=served-$$
ip netns add "$network"
trap 'kill "${server:-}" 2> /dev/null || true; ip netns delete "$network"; umount -R -l "$work/root" 2> /dev/null || true' EXIT
ip -n "$network" link set lo up
mkdir -p "$work/root"
mount --bind "$root" "$work/root"
mount -o remount,bind,ro "$work/root"
mount -t proc proc "$work/root/proc"
mount -t tmpfs tmpfs "$work/root/dev"
mknod -m 666 "$work/root/dev/null" c 1 3
# The command and the environment are those of the Dockerfile.
read -r -a command <<< "$(sed -n 's/^ENTRYPOINT \[\(.*\)\]$/\1/p' "$work/container/Dockerfile" | tr -d '",')"
read -r -a variables <<< "$(sed -n 's/^ENV //p' "$work/container/Dockerfile")"
ip netns exec "$network" chroot "$work/root" /usr/bin/env -i "${variables[@]}" /usr/bin/setpriv --reuid 10001 --regid 10001 \
    --clear-groups --bounding-set=-all --inh-caps=-all --no-new-privs \
    /usr/bin/env -C /app "${command[@]}" > "$work/server.log" 2>&1 &
server=$!
for _ in $(seq 100); do
    if ip netns exec "$network" "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health', timeout=1)" 2> /dev/null
    then break; fi
    sleep 0.3
done
say "a write" "$(chroot "$work/root" /bin/sh -c 'touch /app/x 2>&1 && echo possible' | tail -1)"
say "the way out" "$(ip netns exec "$network" chroot "$work/root" /venv/bin/python -c "
import socket
try: socket.create_connection(('1.1.1.1', 443), 2)
except OSError as error: print(error)")"
say "user" "$(ps -o uid= -p "$(pgrep -f 'server.py packages' | head -1)" | tr -d ' ')"
say "resident MiB" "$(($(ps -o rss= -p "$(pgrep -f 'server.py packages' | head -1)") / 1024))"
say "answer" "$(ip netns exec "$network" env HF_HUB_OFFLINE=0 "$python" -c "
from huggingface_hub import InferenceClient
found = InferenceClient(model='http://127.0.0.1:8080').text_classification('Thank you so much, this made my day!', top_k=1)
print(found[0].label, round(found[0].score, 3))")"
kill -TERM "$(pgrep -f 'server.py packages' | head -1)"
wait "$server" && code=0 || code=$?
say "exit after SIGTERM" "$code"
