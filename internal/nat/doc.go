// Package nat writes the few address translation rules of a one-node cluster into
// the kernel, without any program of the system: TCP of the pods goes to a proxy
// (REDIRECT), UDP leaves with the node's address (SNAT), a port of the node leads
// to a pod (DNAT). One rule forwards nothing from the pods' bridge to itself (DROP).
//
// There are two back ends, because a gVisor sandbox has no nf_tables and many Linux
// kernels have nothing else: [Legacy] talks to ip_tables, [Nftables] to nf_tables.
// Supports finds out whether one takes the given rules, by giving them to it.
//
// All that is written is in chains of our own: K3S9P-PREROUTING and so on, with one
// jump at the head of the built-in chain, or the table "ip k3s9p" of nf_tables. So
// Apply and Remove know what is ours by its place and not by its looks: they work
// after a crash and when an address has changed since, and an equal rule that
// somebody else has made stays. Rules of others are kept byte for byte, with their
// counters.
//
// A rule decides about new connections; those that the kernel knows keep what they
// have. That the kernel has accepted rules does not prove that it follows them: who needs
// to know sends a packet. The package has no IPv6, no port ranges and no other
// matches than [Rule] lists, which is what gVisor takes too; for a firewall, or on a
// machine with kube-proxy, use nft or iptables.
package nat
