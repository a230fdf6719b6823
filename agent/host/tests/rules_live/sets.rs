//! Rule sets as programs of nodes make them, as input of `iptables-restore` and `nft -f`.

/// ip-masq-agent 2.9 and before: ports are kept.
pub(crate) const IP_MASQ_AGENT_2_9: &str = "*nat\n:IP-MASQ - [0:0]\n\
    -A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ chain\" -m addrtype ! --dst-type LOCAL -j IP-MASQ\n\
    -A IP-MASQ -d 169.254.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 10.0.0.0/8 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 172.16.0.0/12 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 192.168.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE\n\
    COMMIT\n";

/// ip-masq-agent 2.10: every connection gets a port at random.
pub(crate) const IP_MASQ_AGENT_2_10: &str = "*nat\n:IP-MASQ - [0:0]\n\
    -A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ chain\" -m addrtype ! --dst-type LOCAL -j IP-MASQ\n\
    -A IP-MASQ -d 169.254.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 10.0.0.0/8 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 172.16.0.0/12 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 192.168.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE --random-fully\n\
    COMMIT\n";

/// ip-masq-agent 2.12 with `--to-ports=1024-29999,32768-65535`: split by chance, for each protocol with ports.
pub(crate) const IP_MASQ_AGENT_2_12: &str = "*nat\n:IP-MASQ - [0:0]\n\
    -A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all non-LOCAL destination traffic to our custom IP-MASQ chain\" -m addrtype ! --dst-type LOCAL -j IP-MASQ\n\
    -A IP-MASQ -d 169.254.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 10.0.0.0/8 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 172.16.0.0/12 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -d 192.168.0.0/16 -m comment --comment \"ip-masq-agent: local traffic is not subject to MASQUERADE\" -j RETURN\n\
    -A IP-MASQ -p tcp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -m statistic --mode random --probability 0.4693 -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
    -A IP-MASQ -p tcp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE --to-ports 32768-65535 --random-fully\n\
    -A IP-MASQ -p udp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -m statistic --mode random --probability 0.4693 -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
    -A IP-MASQ -p udp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE --to-ports 32768-65535 --random-fully\n\
    -A IP-MASQ -p sctp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -m statistic --mode random --probability 0.4693 -j MASQUERADE --to-ports 1024-29999 --random-fully\n\
    -A IP-MASQ -p sctp -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE --to-ports 32768-65535 --random-fully\n\
    -A IP-MASQ -m comment --comment \"ip-masq-agent: outbound traffic is subject to MASQUERADE (must be last in chain)\" -j MASQUERADE --random-fully\n\
    COMMIT\n";

/// kube-proxy in iptables mode, as of 1.29: three NodePorts, of which one also accepts what comes from localhost.
pub(crate) const KUBE_PROXY_IPTABLES: &str = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-NODEPORTS - [0:0]\n\
    :KUBE-MARK-MASQ - [0:0]\n:KUBE-EXT-AAAAAAAAAAAAAAAA - [0:0]\n:KUBE-EXT-BBBBBBBBBBBBBBBB - [0:0]\n:KUBE-EXT-CCCCCCCCCCCCCCCC - [0:0]\n\
    -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
    -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
    -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
    -A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m comment --comment \"default/kubernetes:https cluster IP\" -m tcp --dport 443 -j KUBE-MARK-MASQ\n\
    -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
    -A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/web:http\" -m tcp --dport 30080 -j KUBE-EXT-AAAAAAAAAAAAAAAA\n\
    -A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/web:https\" -m tcp --dport 30443 -j KUBE-EXT-BBBBBBBBBBBBBBBB\n\
    -A KUBE-NODEPORTS -p udp -m comment --comment \"kube-system/dns:dns\" -m udp --dport 30053 -j KUBE-EXT-CCCCCCCCCCCCCCCC\n\
    -A KUBE-EXT-AAAAAAAAAAAAAAAA -j KUBE-MARK-MASQ\n\
    -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
    -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
    -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
    -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
    COMMIT\n";

/// kube-proxy in nftables mode, as of 1.33.
pub(crate) const KUBE_PROXY_NFTABLES: &str = "table ip kube-proxy {\n\
    comment \"rules for kube-proxy\"\n\
    map service-nodeports { type inet_proto . inet_service : verdict\n\
        elements = { tcp . 30080 : goto external-ULMVA6XW-shop/web/tcp/http, tcp . 30443 : goto external-HPFGKJ3X-shop/web/tcp/https, udp . 30053 : goto external-AQI2S6QI-kube-system/dns/udp/dns } }\n\
    map no-endpoint-nodeports { type inet_proto . inet_service : verdict\n\
        elements = { udp . 31999 : goto reject-chain } }\n\
    set nodeport-ips { type ipv4_addr; elements = { 192.0.2.10 } }\n\
    chain reject-chain { reject\n }\n\
    chain mark-for-masquerade { meta mark set meta mark | 0x4000\n }\n\
    chain external-ULMVA6XW-shop/web/tcp/http { jump mark-for-masquerade\n }\n\
    chain external-HPFGKJ3X-shop/web/tcp/https { jump mark-for-masquerade\n }\n\
    chain external-AQI2S6QI-kube-system/dns/udp/dns { jump mark-for-masquerade\n }\n\
    chain services { ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n }\n\
    chain masquerading { meta mark & 0x4000 == 0 return\n meta mark set meta mark ^ 0x4000\n masquerade fully-random\n }\n\
    chain nat-prerouting { type nat hook prerouting priority dstnat; jump services\n }\n\
    chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading\n }\n\
    }\n";

/// Cilium that masquerades by iptables, with `--iptables-random-fully`.
pub(crate) const CILIUM: &str = "*nat\n:CILIUM_POST_nat - [0:0]\n\
    -A POSTROUTING -m comment --comment \"cilium-feeder: CILIUM_POST_nat\" -j CILIUM_POST_nat\n\
    -A CILIUM_POST_nat -s 10.64.0.0/24 ! -d 10.64.0.0/16 ! -o cilium_+ -m comment --comment \"cilium masquerade non-cluster\" -j MASQUERADE --random-fully\n\
    COMMIT\n";
