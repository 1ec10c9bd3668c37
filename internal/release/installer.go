package release

import (
	_ "embed"
	"fmt"
	"net/url"
	"strings"

	"k3s9p/internal/hint"
)

//go:embed install.sh
var installer string

// urlVariable is where releases are published: a release of v0.1.0 is in <URL>/v0.1.0.
const urlVariable = "K3S9P_RELEASE_URL"

// InstallScript is install.sh for one release: it installs that from where releases are
// published, an address that nobody has checked or "", and accepts these signers.
func InstallScript(version, home string, signers Signers) string {
	return strings.NewReplacer("@VERSION@", version, "@URL@", home, "@SIGNERS@", strings.TrimSpace(signers.String())).Replace(installer)
}

// install is install.sh for a release that is published at an address, if that is known.
func install(s Source, home string, signers Signers) (string, error) {
	if home != "" {
		u, err := url.Parse(home)
		if err != nil || u.Scheme != "https" || u.Host == "" || strings.ContainsAny(home, "' \n") {
			return "", hint.Add(fmt.Errorf("%s=%s is not the address of releases", urlVariable, home), "%s=https://…: v0.1.0/SHA256SUMS is below it", urlVariable)
		}
	}
	return InstallScript(s.Version, home, signers), nil
}

// homeOf is where releases are published, as a script says.
func homeOf(script string) string {
	_, rest, _ := strings.Cut(script, "\nhome='")
	home, _, _ := strings.Cut(rest, "'\n")
	return home
}

// checkInstaller looks whether the script is the one of this release.
func checkInstaller(script, version string, signers Signers) error {
	for _, line := range []string{"release='" + version + "'\n", "signers='" + strings.TrimSpace(signers.String()) + "'\n"} {
		if !strings.Contains(script, line) {
			return fmt.Errorf("it does not have the line %s", strings.TrimSpace(line))
		}
	}
	return nil
}
