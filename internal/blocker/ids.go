package blocker

import (
	"context"
	"fmt"

	"k3s9p/internal/userns"
)

// ttyGroup owns terminals (Debian's base-passwd; containerd pkg/oci/mounts.go).
const ttyGroup = 5

var terminals = Blocker{
	ID:      "terminals",
	Title:   "no group for terminals",
	Symptom: `error mounting "devpts"…invalid argument`,
	Source:  "containerd pkg/oci/mounts.go mounts devpts with gid=5; a user namespace that its user has made alone has one group",
	Remedy:  Patch,
	Action:  "runc here mounts devpts without a group that there is not",
	Check: func(context.Context, *Host) (Answer, string) {
		switch has, err := userns.HasGroup(ttyGroup); {
		case err != nil:
			return unclear(err)
		case !has:
			return Found, fmt.Sprintf("/proc/self/gid_map has no group %d", ttyGroup)
		}
		return Fine, fmt.Sprintf("/proc/self/gid_map has group %d", ttyGroup)
	},
}

var fewIDs = Blocker{
	ID:      "ids",
	Title:   "few users and groups",
	Symptom: "failed to Lchown…for UID…invalid argument",
	Source:  "user_namespaces(7): who has no CAP_SETUID maps their own id only; containerd pkg/archive/tar.go, runc libcontainer",
	Remedy:  Warning,
	Action:  "images whose files belong to others than root do not unpack, and containers that run as another user do not start",
	Check: func(context.Context, *Host) (Answer, string) {
		users, groups, err := userns.Mapped()
		switch {
		case err != nil:
			return unclear(err)
		case users < userns.IDs || groups < userns.IDs:
			evidence := fmt.Sprintf("users: %d, groups: %d, of %d that images may have", users, groups, userns.IDs)
			if why := userns.WhyOneID(); why != "" {
				evidence += ": " + why
			}
			return Found, evidence
		}
		return Fine, fmt.Sprintf("users and groups below %d are mapped", userns.IDs)
	},
}
