package scenario

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"k3s9p/internal/builder"
	"k3s9p/internal/digest"
	"k3s9p/internal/hint"
	"k3s9p/internal/pin"
	"k3s9p/internal/record"
)

// Preflight is the reason why sandboxes cannot be started here, or nil.
func Preflight() error {
	if os.Geteuid() != 0 {
		return hint.Add(errors.New("a sandbox needs root"), "sudo go tool mage test:sandbox")
	}
	probe := exec.Command("true")
	probe.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if err := probe.Run(); err != nil {
		return hint.Add(fmt.Errorf("network and mount namespaces are refused here: %w", err), "a container needs CAP_SYS_ADMIN for them: run this on a machine, or in a privileged container")
	}
	return nil
}

// inDist is the distribution in dist/, or kubernetes if there is none.
func inDist(b *builder.Builder) string {
	var built record.Build
	if data, err := os.ReadFile(b.Dist(builder.RecordName)); err == nil {
		_ = json.Unmarshal(data, &built) // validateDist says what is wrong
	}
	return cmp.Or(built.Distribution, kubernetes)
}

// validateDist makes sure that dist/ has what these sources give: that is what the
// scenarios test.
func validateDist(b *builder.Builder, selection pin.Selection) error {
	const build = "go tool mage build"
	name := b.Dist(builder.RecordName)
	data, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return hint.Add(fmt.Errorf("there are no programs in %s to test", b.Dist()), build)
	}
	if err != nil {
		return err
	}
	var built record.Build
	if err := json.Unmarshal(data, &built); err != nil {
		return hint.Add(fmt.Errorf("%s: %w", name, err), build)
	}
	for _, set := range selection.Sets {
		i := slices.IndexFunc(built.Sets, func(other record.Set) bool { return other.Name == set.Name })
		if i < 0 {
			return hint.Add(fmt.Errorf("dist/ has nothing of build/%s: it was made for distribution %s", set.Name, built.Distribution), "DISTRO=%s %s", selection.Distribution, build)
		}
		if err := set.Compare(built.Sets[i]); err != nil {
			return hint.Add(fmt.Errorf("dist/ was built from other pins, patches or flags: %w", err), build)
		}
	}
	for _, output := range built.Outputs {
		if output.Link != "" {
			continue
		}
		if sum, _, err := digest.File(b.Dist(output.Path)); err != nil || sum != output.SHA256 {
			return hint.Add(errors.Join(fmt.Errorf("%s is not what was built", b.Dist(output.Path)), err), build)
		}
	}
	return nil
}
