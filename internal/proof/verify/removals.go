package verify

import "k3s9p/internal/blocker"

// removal is something that a test protects.
type removal struct {
	part part
	test guard
	// says is what the test has to say without it, so that one that fails for another
	// reason is no proof. Like a symptom, with "…" for anything within a line.
	says blocker.Symptom
}

// removals are the patches that can be taken out alone, the fixes and the probes.
// TestRemovals has the reasons of those that are missing.
var removals = []removal{
	{patch{"cadvisor", "0001"}, whole("hungmount", today, "TestHungMount"), "two silent mounts hold"},
	{patch{"cadvisor", "0002"}, whole("stats", today, "TestStats/metrics"), "the filesystem of / is reported twice"},
	{patch{"cadvisor", "0003"}, whole("overlayroot", today, "TestOverlayRoot"), "inodes are reported of a filesystem without an inode table"},
	{patch{"cadvisor", "0004"}, program{}, "i.onDemand undefined"},
	{patch{"cadvisor", "0005"}, whole("pods", today, "TestPods"), symptom("root-filesystem")},
	{patch{"opencontainers/cgroups", "0001"}, whole("pods", today, "TestPods"), symptom("cgroup-files")},
	{patch{"opencontainers/cgroups", "0002"}, whole("stats", today, "TestStats/node_memory"), "the node's working set"},
	{patch{"kubernetes", "0002"}, whole("pods", today, "TestPods"), symptom("tunables")},
	{patch{"apiserver", "0001"}, whole("cluster", today, "TestCluster/few_connections_to_the_datastore"), "connections to the datastore"},
	{patch{"cgroups/v3", "0001"}, whole("stats", today, "TestStats/containerd"), "the shim says that cpuacct.usage of the container is 0"},
	{patch{"cgroups/v3", "0002"}, whole("stats", today, "TestStats/containerd"), "the shim says that memory.usage_in_bytes of the container is 0"},
	{patch{"plugins", "0001"}, whole("pods", today, "TestPods"), symptom("bridge-port")},
	{patch{"plugins", "0002"}, whole("pods", today, "TestPods"), "bridge port in error state"},
	{patch{"plugins", "0003"}, alone("experiment", today, "TestPatchedPrograms/preferred-source"), "pod after does not run"},
	{patch{"plugins", "0004"}, whole("pods", september2025, "TestPods"), symptom("link-kind")},
	{patch{"runc", "0001"}, whole("pods", september2025, "TestPods"), symptom("tmpfs-options")},
	{patch{"runc", "0002"}, whole("rootless", today, "TestUser"), symptom("terminals")},

	{fix("cgroup-v1"), whole("pods", today, "TestPods"), symptom("cgroup-v1")},
	{fix("kmsg"), whole("pods", today, "TestPods"), symptom("kmsg")},
	{fix("mount-propagation"), alone("experiment", today, "TestPodBlockers/iteration-3-mount-propagation"), symptom("mount-propagation")},
	{fix("disk-thresholds"), whole("experiment", today, "TestNearlyFullDisk/iteration-4-disk-thresholds"), "after the fix: "},
	{fix("cni-plugins"), whole("pods", today, "TestPods"), symptom("cni-plugins")},
	{fix("overlayfs"), whole("pods", september2025, "TestPods"), symptom("overlayfs")},
	{fix("sockets"), alone("linux9p", today, "TestNode/passthrough"), symptom("sockets")},
	{fix("unprivileged-ports"), whole("pods", today, "TestPods"), symptom("unprivileged-ports")},
	{fix("places"), whole("rootless", today, "TestUser"), "symlink /dev/null /dev/kmsg: permission denied"},
	{fix("masquerade"), whole("cluster", today, "TestCluster"), "nat: apply rules with nftables…protocol not supported"},
	{fix("services"), whole("cluster", today, "TestCluster"), "could not run nftables command…Protocol not supported"},
	{fix("bridged"), whole("cluster", today, "TestCluster"), "answers a datagram of another pod with"},
	{fix("oom-score"), whole("native", today, "TestNative"), symptom("oom-score")},
	{fix("cgroup-mounts"), alone("cluster", today, "TestOtherSandboxes/no_cgroups_mounted"), "there is no hierarchy of cgroups"},

	{check("cgroup-v1"), whole("experiment", today, "TestStock/cgroup-v1"), blind("cgroup-v1")},
	{check("kmsg"), whole("experiment", today, "TestStock/iteration-2-kmsg"), blind("kmsg")},
	{check("mount-propagation"), alone("experiment", today, "TestPodBlockers/iteration-3-mount-propagation"), blind("mount-propagation")},
	{check("disk-thresholds"), whole("experiment", today, "TestNearlyFullDisk/iteration-4-disk-thresholds"), blind("disk-thresholds")},
	{check("cni-plugins"), alone("experiment", today, "TestPodBlockers/iteration-5-cni-plugins"), blind("cni-plugins")},
	{check("overlayfs"), whole("pods", september2025, "TestPods"), symptom("overlayfs")},
	{check("cgroup-files"), whole("experiment", today, "TestStock/iteration-7-rootfs"), blind("cgroup-files")},
	{check("root-filesystem"), whole("experiment", today, "TestOneCauseAtATime/cause-cgroups"), blind("root-filesystem")},
	{check("tunables"), whole("experiment", today, "TestOneCauseAtATime/cause-cadvisor"), blind("tunables")},
	{check("places"), whole("rootless", today, "TestUser"), "symlink /dev/null /dev/kmsg: permission denied"},
	{check("services"), whole("cluster", today, "TestCluster"), "could not run nftables command…Protocol not supported"},
	{check("bridged"), whole("cluster", today, "TestCluster"), "answers a datagram of another pod with"},
	{check("oom-score"), whole("native", today, "TestNative"), symptom("oom-score")},
	{check("cgroup-mounts"), alone("cluster", today, "TestOtherSandboxes/no_cgroups_mounted"), "there is no hierarchy of cgroups"},
	{check("memory"), alone("poor", today, "TestLittleMemory"), "[check] gives <nil>"},
	{check("tmpfs-options"), alone("cluster", september2025, "TestCheck"), unseen("tmpfs-options")},
	{check("terminals"), whole("rootless", today, "TestUser"), unseen("terminals")},
	{check("ids"), whole("rootless", today, "TestUser"), unseen("ids")},
	{check("memory-limits"), alone("cluster", today, "TestCheck"), unseen("memory-limits")},
	{check("seccomp"), alone("experiment", today, "TestPatchedPrograms/seccomp"), blind("seccomp")},
	{check("unprivileged-ports"), alone("experiment", today, "TestPodBlockers/unprivileged-ports"), blind("unprivileged-ports")},
	{check("shared-memory"), alone("linux9p", today, "TestNoSharedMemory"), "shared-memory: fine"},
	{check("sockets"), alone("linux9p", today, "TestNode/passthrough"), "sockets: fine"},
	{check("masquerade"), whole("experiment", today, "TestMasquerade/masquerade"), blind("masquerade")},
	{check("link-kind"), alone("experiment", september2025, "TestPatchedPrograms/link-kind"), blind("link-kind")},
	{check("bridge-port"), alone("experiment", today, "TestPatchedPrograms/bridge-port"), blind("bridge-port")},
	{check("preferred-source"), alone("experiment", today, "TestPatchedPrograms/preferred-source"), blind("preferred-source")},
}

// The gVisors of the proof.
const (
	today         = "today"
	september2025 = "202509"
)

// symptom is what a user sees of a blocker.
func symptom(id string) blocker.Symptom {
	b, err := blocker.Find(id)
	if err != nil {
		panic(err)
	}
	return b.Symptom
}

// blind is what the experiment says of a probe that does not see what bites.
func blind(id string) blocker.Symptom {
	return blocker.Symptom(id + " bites, and its probe answers fine: " + takenOut)
}

// unseen is what is said of a probe that misses what check has to find.
func unseen(id string) blocker.Symptom {
	return blocker.Symptom("check says of " + id + ": fine: " + takenOut)
}
