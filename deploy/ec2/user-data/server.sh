# shellcheck shell=bash disable=SC2154 # the variables stand before this, in what `cluster` sends
# Installs the server and starts it with systemd.
programs flightcache-server flightcache
address=$(hostname -I | cut -d' ' -f1)
install -d /etc/flightcache
cat >/etc/flightcache/flightcache.toml <<END
listen = "0.0.0.0:50051"
admin = "0.0.0.0:50052"
advertise = "grpc+tcp://$address:50051"
gossip = "$address:50053"
cluster = "$cluster"
seed = ["${seed:-$address}:50053"]
data_directory = "/var/lib/flightcache"
capacity = "$capacity"

[[source]]
url = "$objects/"
END
cat >/etc/systemd/system/flightcache-server.service <<END
[Unit]
Description=Flightcache
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/local/bin/flightcache-server --config /etc/flightcache/flightcache.toml
Environment=AWS_REGION=$region
DynamicUser=yes
StateDirectory=flightcache
PrivateTmp=yes
ProtectSystem=strict
ProtectHome=yes
NoNewPrivileges=yes
LimitNOFILE=65536
Restart=always
# The time to drain, and half a minute for hot chunks to be handed over.
TimeoutStopSec=60

[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --now flightcache-server
