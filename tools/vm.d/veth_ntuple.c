// SPDX-License-Identifier: GPL-2.0
/*
 * Makes a NIC of every veth: with combined channels, and with ntuple rules that `ethtool -N` sets and that
 * steer, for tests.
 *
 * No NIC that QEMU has for x86 takes such rules. Instead of a patch to the kernel's veth, which would have to
 * follow it, this module stands before it: a veth's operations are replaced by copies in which a few are ours
 * and all others the stock driver's. The copies lie in one object, so from either of them the object is found
 * again.
 *
 * A NIC puts a packet into a queue before any program sees it. With veth, what arrives at one end is what the
 * other end sends, and the stock driver takes the queue to receive on from the one that it was sent on. So
 * when the sending end is about to send, we look at the receiving end's rules, and where one matches, name
 * its queue there. A packet that matches none goes where the stock driver puts it; so do frames that an XDP
 * program sends, which are never looked at.
 *
 * Rules change under the RTNL lock and are read under RCU. The module cannot be unloaded: ends of veths may
 * be in use.
 */
#include <linux/ethtool.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/skbuff.h>
#include <net/flow_dissector.h>
#include <net/rtnetlink.h>

#define LOCATIONS 64

struct rule {
	struct ethtool_rx_flow_spec spec;
	struct rcu_head rcu;
};

struct nic {
	const struct net_device_ops *stock_netdev;
	const struct ethtool_ops *stock_ethtool;
	struct net_device_ops netdev;
	struct ethtool_ops ethtool;
	struct rule __rcu *rules[LOCATIONS]; /* the lowest location that matches wins */
	struct rcu_head rcu;
};

static netdev_tx_t steer_and_send(struct sk_buff *packet, struct net_device *dev);

static bool is_nic(const struct net_device *dev)
{
	return dev->netdev_ops->ndo_start_xmit == steer_and_send;
}

static struct nic *nic_of(const struct net_device *dev)
{
	return container_of(dev->netdev_ops, struct nic, netdev);
}

/* The protocol numbers that a rule of this type is about; or it is not to be had. */
static int protocols(u32 flow_type, __be16 *network, u8 *transport)
{
	switch (flow_type) {
	case UDP_V4_FLOW:
	case UDP_V6_FLOW: *transport = IPPROTO_UDP; break;
	case TCP_V4_FLOW:
	case TCP_V6_FLOW: *transport = IPPROTO_TCP; break;
	default: return -EOPNOTSUPP;
	}
	*network = htons(flow_type == UDP_V4_FLOW || flow_type == TCP_V4_FLOW ? ETH_P_IP : ETH_P_IPV6);
	return 0;
}

static bool ports_match(const struct flow_dissector_key_ports *ports, __be16 src, __be16 dst, __be16 src_mask,
			__be16 dst_mask)
{
	return !((ports->src ^ src) & src_mask) && !((ports->dst ^ dst) & dst_mask);
}

static bool matches(const struct ethtool_rx_flow_spec *spec, const struct flow_keys *packet)
{
	const struct ethtool_tcpip4_spec *v4 = &spec->h_u.tcp_ip4_spec, *mask4 = &spec->m_u.tcp_ip4_spec;
	const struct ethtool_tcpip6_spec *v6 = &spec->h_u.tcp_ip6_spec, *mask6 = &spec->m_u.tcp_ip6_spec;
	__be16 network;
	u8 transport;

	if (protocols(spec->flow_type, &network, &transport) || packet->basic.n_proto != network ||
	    packet->basic.ip_proto != transport || packet->control.flags & FLOW_DIS_IS_FRAGMENT)
		return false;
	if (network == htons(ETH_P_IP))
		return !((packet->addrs.v4addrs.src ^ v4->ip4src) & mask4->ip4src) &&
		       !((packet->addrs.v4addrs.dst ^ v4->ip4dst) & mask4->ip4dst) &&
		       ports_match(&packet->ports, v4->psrc, v4->pdst, mask4->psrc, mask4->pdst);
	for (int i = 0; i < 4; i++)
		if ((packet->addrs.v6addrs.src.s6_addr32[i] ^ v6->ip6src[i]) & mask6->ip6src[i] ||
		    (packet->addrs.v6addrs.dst.s6_addr32[i] ^ v6->ip6dst[i]) & mask6->ip6dst[i])
			return false;
	return ports_match(&packet->ports, v6->psrc, v6->pdst, mask6->psrc, mask6->pdst);
}

/* The queue of the first rule that matches, or -1. */
static int queue_for(const struct nic *nic, const struct sk_buff *packet)
{
	struct flow_keys keys;

	if (!skb_flow_dissect_flow_keys(packet, &keys, 0))
		return -1;
	for (u32 location = 0; location < LOCATIONS; location++) {
		const struct rule *rule = rcu_dereference_bh(nic->rules[location]);

		if (rule && matches(&rule->spec, &keys))
			return rule->spec.ring_cookie;
	}
	return -1;
}

static netdev_tx_t steer_and_send(struct sk_buff *packet, struct net_device *dev)
{
	const struct net_device_ops *stock = nic_of(dev)->stock_netdev;
	const struct net_device *receiver = stock->ndo_get_peer_dev(dev);
	int queue = -1;

	if (receiver && is_nic(receiver) && receiver->features & NETIF_F_NTUPLE)
		queue = queue_for(nic_of(receiver), packet);
	/* With a native program the stock driver takes the number as it is. Else the packet keeps the field, and
	 * whoever reads it in a packet that was received takes 0 for none: it counts from 1. */
	if (queue >= 0 && READ_ONCE(receiver->xdp_state[XDP_MODE_DRV].prog))
		skb_set_queue_mapping(packet, queue);
	else if (queue >= 0)
		skb_record_rx_queue(packet, queue);
	return stock->ndo_start_xmit(packet, dev);
}

static int get_rules(struct net_device *dev, struct ethtool_rxnfc *command, u32 *locations)
{
	struct nic *nic = nic_of(dev);
	const struct rule *rule;
	u32 count = 0;

	switch (command->cmd) {
	case ETHTOOL_GRXRINGS: command->data = dev->real_num_rx_queues; return 0;
	case ETHTOOL_GRXCLSRULE:
		if (command->fs.location >= LOCATIONS)
			return -EINVAL;
		rule = rtnl_dereference(nic->rules[command->fs.location]);
		if (!rule)
			return -ENOENT;
		command->fs = rule->spec;
		return 0;
	case ETHTOOL_GRXCLSRLCNT:
	case ETHTOOL_GRXCLSRLALL:
		for (u32 location = 0; location < LOCATIONS; location++) {
			if (!rtnl_dereference(nic->rules[location]))
				continue;
			if (command->cmd == ETHTOOL_GRXCLSRLALL) {
				if (count == command->rule_cnt)
					return -EMSGSIZE;
				locations[count] = location;
			}
			count++;
		}
		command->rule_cnt = count;
		command->data = LOCATIONS;
		return 0;
	default: return -EOPNOTSUPP;
	}
}

static int set_rules(struct net_device *dev, struct ethtool_rxnfc *command)
{
	const struct ethtool_rx_flow_spec *spec = &command->fs;
	struct rule *rule = NULL, *old;
	struct nic *nic = nic_of(dev);
	__be16 network;
	u8 transport;
	int error;

	if (spec->location >= LOCATIONS)
		return -EINVAL;
	old = rtnl_dereference(nic->rules[spec->location]);
	switch (command->cmd) {
	case ETHTOOL_SRXCLSRLDEL:
		if (!old)
			return -ENOENT;
		break;
	case ETHTOOL_SRXCLSRLINS:
		if (!(dev->features & NETIF_F_NTUPLE))
			return -EOPNOTSUPP;
		error = protocols(spec->flow_type, &network, &transport);
		if (error)
			return error;
		/* Type of service and traffic class. To drop, which is a queue's number too, is not to be had. */
		if (network == htons(ETH_P_IP) ? spec->m_u.tcp_ip4_spec.tos : spec->m_u.tcp_ip6_spec.tclass)
			return -EOPNOTSUPP;
		if (spec->ring_cookie >= dev->real_num_rx_queues)
			return -EINVAL;
		rule = kzalloc(sizeof(*rule), GFP_KERNEL);
		if (!rule)
			return -ENOMEM;
		rule->spec = *spec;
		break;
	default: return -EOPNOTSUPP;
	}
	rcu_assign_pointer(nic->rules[spec->location], rule);
	if (old)
		kfree_rcu(old, rcu);
	return 0;
}

/* The stock driver counts receiving and sending queues apart; most NICs have pairs. */
static void get_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	nic_of(dev)->stock_ethtool->get_channels(dev, channels);
	channels->max_combined = min(channels->max_rx, channels->max_tx);
	channels->combined_count = min(channels->rx_count, channels->tx_count);
	channels->rx_count -= channels->combined_count;
	channels->tx_count -= channels->combined_count;
}

static int set_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	struct ethtool_channels stock = *channels;

	stock.rx_count += channels->combined_count;
	stock.tx_count += channels->combined_count;
	stock.combined_count = 0;
	if (stock.rx_count > channels->max_rx || stock.tx_count > channels->max_tx)
		return -EINVAL;
	return nic_of(dev)->stock_ethtool->set_channels(dev, &stock);
}

static int become_nic(struct net_device *dev)
{
	struct nic *nic = kzalloc(sizeof(*nic), GFP_KERNEL);

	if (!nic)
		return -ENOMEM;
	nic->stock_netdev = dev->netdev_ops;
	nic->netdev = *dev->netdev_ops;
	nic->netdev.ndo_start_xmit = steer_and_send;
	nic->stock_ethtool = dev->ethtool_ops;
	nic->ethtool = *dev->ethtool_ops;
	nic->ethtool.get_rxnfc = get_rules;
	nic->ethtool.set_rxnfc = set_rules;
	nic->ethtool.get_channels = get_channels;
	nic->ethtool.set_channels = set_channels;
	dev->netdev_ops = &nic->netdev;
	dev->ethtool_ops = &nic->ethtool;
	dev->hw_features |= NETIF_F_NTUPLE; /* off at first, as with most NICs */
	return 0;
}

/* Both ends are shut and go together, so nobody sends any more, and looks at our operations. */
static void become_veth(struct net_device *dev)
{
	struct nic *nic = nic_of(dev);

	dev->netdev_ops = nic->stock_netdev;
	dev->ethtool_ops = nic->stock_ethtool;
	for (u32 location = 0; location < LOCATIONS; location++) {
		struct rule *rule = rtnl_dereference(nic->rules[location]);

		if (rule)
			kfree_rcu(rule, rcu);
	}
	kfree_rcu(nic, rcu);
}

static int on_event(struct notifier_block *block, unsigned long event, void *what)
{
	struct net_device *dev = netdev_notifier_info_to_dev(what);

	if (!dev->rtnl_link_ops || strcmp(dev->rtnl_link_ops->kind, "veth"))
		return NOTIFY_DONE;
	/* Both events also come when a device moves to another network namespace, which rules survive. */
	if (event == NETDEV_REGISTER && !is_nic(dev))
		return notifier_from_errno(become_nic(dev));
	if (event == NETDEV_UNREGISTER && is_nic(dev) && dev->reg_state == NETREG_UNREGISTERING)
		become_veth(dev);
	return NOTIFY_DONE;
}

static struct notifier_block notifier = {.notifier_call = on_event};

static int __init start(void)
{
	/* Tells of the devices that are there already, too. */
	return register_netdevice_notifier(&notifier);
}
module_init(start);

MODULE_DESCRIPTION("ntuple rules and combined channels for veth, for tests");
MODULE_LICENSE("GPL");
