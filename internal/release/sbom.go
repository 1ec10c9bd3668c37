package release

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/github/go-spdx/v2/spdxexp"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
	"github.com/spdx/tools-golang/tagvalue"

	"k3s9p/internal/record"
)

// sbom describes a program of a release and all that is in it, in SPDX 2.3
// (https://spdx.github.io/spdx-spec/v2.3/). What is linked is a package, what was
// changed in it an annotation of that.
func sbom(s Source, arch, sum string, programs []executable, licences map[string]licence) ([]byte, error) {
	name := programName(arch)
	date := s.Date.Format(time.RFC3339)
	doc := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName:      name + " " + s.Version,
		DocumentNamespace: "urn:k3s9p:spdx:" + s.Version + ":" + sum,
		CreationInfo:      &spdx.CreationInfo{Created: date, Creators: []common.Creator{{CreatorType: "Tool", Creator: "k3s9p-release-" + s.Version}}},
	}
	whole := packageOf(name, s.Version, "Apache-2.0")
	whole.PackageFileName, whole.PrimaryPackagePurpose = name, "APPLICATION"
	whole.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: sum}}
	doc.Packages = []*spdx.Package{whole}
	relate(doc, "DOCUMENT", common.TypeRelationshipDescribe, whole.PackageSPDXIdentifier)
	for _, c := range allComponents(programs) {
		p := packageOf(c.purl, c.version, licences[c.purl].expression)
		p.PackageName = c.name
		p.PackageExternalReferences = []*spdx.PackageExternalReference{{Category: "PACKAGE-MANAGER", RefType: "purl", Locator: c.purl}}
		if c.sum != "" {
			p.PackageSourceInfo = "the module zip has the sum " + c.sum + " in go.sum"
		}
		for _, patch := range c.patches {
			p.Annotations = append(p.Annotations, spdx.Annotation{
				Annotator: common.Annotator{AnnotatorType: "Tool", Annotator: "k3s9p-release"}, AnnotationType: "OTHER", AnnotationDate: date,
				AnnotationComment: patchComment(patch),
			})
		}
		doc.Packages = append(doc.Packages, p)
	}
	for _, program := range programs {
		id := whole.PackageSPDXIdentifier
		if program.path != launcherPath {
			p := packageOf(program.path, program.version, noAssertion)
			p.PackageFileName, p.PrimaryPackagePurpose = program.path, "APPLICATION"
			p.PackageChecksums = []common.Checksum{{Algorithm: common.SHA256, Value: program.sha256}}
			doc.Packages = append(doc.Packages, p)
			id = p.PackageSPDXIdentifier
			relate(doc, whole.PackageSPDXIdentifier, common.TypeRelationshipContains, id)
		}
		for _, c := range program.components {
			relate(doc, id, common.TypeRelationshipStaticLink, identifierOf(c.purl))
		}
	}
	slices.SortFunc(doc.Packages[1:], func(a, b *spdx.Package) int {
		return strings.Compare(string(a.PackageSPDXIdentifier), string(b.PackageSPDXIdentifier))
	})
	var text bytes.Buffer
	if err := spdxjson.Write(doc, &text, spdxjson.Indent("  ")); err != nil {
		return nil, fmt.Errorf("write the SBOM: %w", err)
	}
	return text.Bytes(), nil
}

func patchComment(p record.Patch) string {
	return fmt.Sprintf("changed by the patch %s, sha256 %s: %s", p.Name, p.Digest, p.Description)
}

func packageOf(id, version, licence string) *spdx.Package {
	return &spdx.Package{
		PackageName: id, PackageSPDXIdentifier: identifierOf(id), PackageVersion: version,
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: licence, PackageLicenseDeclared: licence, PackageCopyrightText: noAssertion,
	}
}

// notInIdentifier are the characters that an identifier of SPDX may not have.
var notInIdentifier = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// identifierOf is different for different names: some of them differ only in
// characters that identifiers lack.
func identifierOf(name string) common.ElementID {
	sum := sha256.Sum256([]byte(name))
	return common.ElementID(fmt.Sprintf("Package-%s-%x", notInIdentifier.ReplaceAllString(name, "-"), sum[:4]))
}

func relate(doc *spdx.Document, a common.ElementID, how string, b common.ElementID) {
	doc.Relationships = append(doc.Relationships, &spdx.Relationship{
		RefA: common.DocElementID{ElementRefID: a}, RefB: common.DocElementID{ElementRefID: b}, Relationship: how,
	})
}

// parseSBOM reads an SBOM and validates it: its references by package spdxlib, its
// fields by writing it in the other form of SPDX, whose parser is strict, and its
// licences by their grammar.
func parseSBOM(data []byte) (*spdx.Document, error) {
	doc, err := spdxjson.Read(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		return nil, err
	}
	var tags bytes.Buffer
	if err := tagvalue.Write(doc, &tags); err != nil {
		return nil, err
	}
	if _, err := tagvalue.Read(&tags); err != nil {
		return nil, err
	}
	for _, p := range doc.Packages {
		if p.PackageName == "" || p.PackageDownloadLocation == "" {
			return nil, fmt.Errorf("the package %q lacks a name or a location", p.PackageSPDXIdentifier)
		}
		if p.PackageLicenseConcluded == noAssertion {
			continue
		}
		if ok, wrong := spdxexp.ValidateLicenses([]string{p.PackageLicenseConcluded}); !ok {
			return nil, fmt.Errorf("the package %s has the licence %v, which SPDX does not know", p.PackageName, wrong)
		}
	}
	return doc, nil
}

// checkSBOM compares an SBOM with the programs that it is about.
func checkSBOM(data []byte, version, arch, sum string, programs []executable) error {
	doc, err := parseSBOM(data)
	if err != nil {
		return err
	}
	if want := programName(arch) + " " + version; doc.DocumentName != want {
		return fmt.Errorf("it is about %s, not %s", doc.DocumentName, want)
	}
	there := make(map[common.ElementID]*spdx.Package)
	for _, p := range doc.Packages {
		there[p.PackageSPDXIdentifier] = p
	}
	links := make(map[string]bool)
	for _, r := range doc.Relationships {
		links[string(r.RefA.ElementRefID)+" "+r.Relationship+" "+string(r.RefB.ElementRefID)] = true
	}
	var wrong []error
	matches := func(id common.ElementID, what, sum string) {
		if p := there[id]; p == nil || len(p.PackageChecksums) != 1 || p.PackageChecksums[0].Value != sum {
			wrong = append(wrong, fmt.Errorf("it does not have %s with the SHA-256 %s", what, sum))
		}
	}
	whole := identifierOf(programName(arch))
	matches(whole, programName(arch), sum)
	known := map[common.ElementID]bool{whole: true}
	for _, program := range programs {
		id := whole
		if program.path != launcherPath {
			id = identifierOf(program.path)
			matches(id, program.path, program.sha256)
		}
		known[id] = true
		for _, c := range program.components {
			known[identifierOf(c.purl)] = true
			if !links[string(id)+" "+common.TypeRelationshipStaticLink+" "+string(identifierOf(c.purl))] {
				wrong = append(wrong, fmt.Errorf("it does not say that %s is linked from %s %s", program.path, c.name, c.version))
			}
		}
	}
	for _, c := range allComponents(programs) {
		wrong = append(wrong, checkPackage(there[identifierOf(c.purl)], c)...)
	}
	for id, p := range there {
		if !known[id] && !isLibrary(p) {
			wrong = append(wrong, fmt.Errorf("it has %s %s, which is in none of the programs", p.PackageName, p.PackageVersion))
		}
	}
	return errors.Join(wrong...)
}

func checkPackage(p *spdx.Package, c component) []error {
	if p == nil {
		return []error{fmt.Errorf("it lacks %s %s", c.name, c.version)}
	}
	var wrong []error
	purl := func(r *spdx.PackageExternalReference) bool { return r.RefType == "purl" && r.Locator == c.purl }
	if p.PackageName != c.name || p.PackageVersion != c.version || !slices.ContainsFunc(p.PackageExternalReferences, purl) || !strings.Contains(p.PackageSourceInfo, c.sum) {
		wrong = append(wrong, fmt.Errorf("it has %s %s, %s, and the programs %s %s %s", p.PackageName, p.PackageVersion, p.PackageSourceInfo, c.name, c.version, c.sum))
	}
	for _, patch := range c.patches {
		if !slices.ContainsFunc(p.Annotations, func(a spdx.Annotation) bool { return a.AnnotationComment == patchComment(patch) }) {
			wrong = append(wrong, fmt.Errorf("it does not say that %s is changed by the patch %s", c.name, patch.Name))
		}
	}
	if len(p.Annotations) != len(c.patches) {
		wrong = append(wrong, fmt.Errorf("it has %d patches of %s, and the programs %d", len(p.Annotations), c.name, len(c.patches)))
	}
	return wrong
}

// isLibrary reports whether a package is one of the system's: a program does not say
// which of them it was linked with.
func isLibrary(p *spdx.Package) bool {
	return slices.ContainsFunc(p.PackageExternalReferences, func(r *spdx.PackageExternalReference) bool {
		return strings.HasPrefix(r.Locator, systemPURL)
	})
}
