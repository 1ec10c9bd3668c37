package blocker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k3s9p/internal/config"
	"k3s9p/internal/journal"
)

// Plan is what is done on this machine, decided before any of it is done. It is the
// same value that is shown, followed, and shown again afterwards.
type Plan struct {
	Findings []Finding `json:"findings"`
	// Choices for the programs, in words; Settings has them as the programs get them.
	Choices  []Choice        `json:"choices"`
	Changes  []Change        `json:"changes"`
	Settings config.Settings `json:"settings"`
}

// Choice is one for the node's programs.
type Choice struct {
	Subject string `json:"subject"`
	Value   string `json:"value"`
	Reason  string `json:"reason"`
}

// Change is one of the machine.
type Change struct {
	ID     string `json:"id"` // of its record in the journal
	What   string `json:"what"`
	Reason string `json:"reason"`
	// Passing says that it is a mount in the node's mount namespace and ends with that,
	// so that it is not recorded.
	Passing bool `json:"passing,omitempty"`

	change maker
}

type maker interface {
	String() string
	Make() error
}

// Choose adds a choice. A later one about the same subject replaces the earlier.
func (p *Plan) Choose(subject, value, reason string) {
	choice := Choice{subject, value, reason}
	i := slices.IndexFunc(p.Choices, func(c Choice) bool { return c.Subject == subject })
	if i < 0 {
		p.Choices = append(p.Choices, choice)
		return
	}
	p.Choices[i] = choice
}

// Change adds a change of the machine that is taken back when the node ends.
func (p *Plan) Change(id string, change journal.Change, reason string) {
	p.Changes = append(p.Changes, Change{ID: id, What: change.String(), Reason: reason, change: change})
}

// Value is what was chosen.
func (p *Plan) Value(subject string) string {
	for _, c := range p.Choices {
		if c.Subject == subject {
			return c.Value
		}
	}
	return ""
}

// Explain is what was chosen, and why.
func (p *Plan) Explain(subject string) string {
	for _, c := range p.Choices {
		if c.Subject == subject {
			return c.Value + ": " + c.Reason
		}
	}
	return ""
}

// Mount adds a change that ends with the mount namespace of the node.
func (p *Plan) Mount(id string, change maker, reason string) {
	p.Changes = append(p.Changes, Change{ID: id, What: change.String(), Reason: reason, Passing: true, change: change})
}

// Apply makes the changes that are wanted, in the order of the plan, each recorded
// before.
func (p *Plan) Apply(j journal.Journal, wanted func(id string) bool) error {
	for _, c := range p.Changes {
		if !wanted(c.ID) {
			continue
		}
		do := c.change.Make
		if lasting, ok := c.change.(journal.Change); ok && !c.Passing {
			do = func() error { return j.Make(c.ID, lasting) }
		}
		if err := do(); err != nil {
			return fmt.Errorf("%s (%s): %w", c.What, c.Reason, err)
		}
	}
	return nil
}

// Stuck are the findings that no node runs with.
func (p *Plan) Stuck() []Finding {
	return slices.DeleteFunc(slices.Clone(p.Findings), func(f Finding) bool { return f.Answer != Found || f.Remedy != None })
}

// Warnings are the findings that a node runs with, but without something.
func (p *Plan) Warnings() []Finding {
	return slices.DeleteFunc(slices.Clone(p.Findings), func(f Finding) bool { return f.Answer != Found || f.Remedy != Warning })
}

// Make probes for all blockers and decides what is done about them, except about the
// named ones. It changes nothing.
func Make(ctx context.Context, h *Host, except ...string) (Plan, error) {
	for _, id := range except {
		if _, err := Find(id); err != nil {
			return Plan{}, err
		}
	}
	p := Plan{Findings: check(ctx, h), Settings: h.Settings}
	if err := ctx.Err(); err != nil {
		return p, err
	}
	p.defaults(h)
	for i, b := range All() {
		if !slices.Contains(except, b.ID) {
			p.decide(ctx, h, b, &p.Findings[i])
		}
	}
	return p, nil
}

// decide does nothing about what could not be told, unless that is the blocker's
// documented default.
func (p *Plan) decide(ctx context.Context, h *Host, b Blocker, f *Finding) {
	reason := b.Title // what is fixed already will have been taken back
	switch {
	case f.Answer == Fine, f.Answer == Unclear && b.Default == "":
		return
	case f.Answer == Unclear:
		reason = fmt.Sprintf("%s; %s", f.Evidence, b.Default)
	case f.Answer == Found:
		reason = fmt.Sprintf("%s: %s", b.Title, f.Evidence)
	}
	if b.Decide == nil {
		f.Action = b.Action
		return
	}
	d := decision{h: h, plan: p, id: b.ID, reason: reason}
	b.Decide(ctx, &d)
	f.Action = strings.Join(d.actions, "; ")
}

// decision is what is decided about one finding.
type decision struct {
	h       *Host
	plan    *Plan
	id      string
	reason  string
	actions []string
}

func (d *decision) settings() *config.Settings { return &d.plan.Settings }

func (d *decision) choose(subject, value string) {
	d.plan.Choose(subject, value, d.reason)
	d.actions = append(d.actions, subject+": "+value)
}

// change is one that stays until it is taken back; it is the same one that was made
// already, if it was.
func change[C journal.Change](d *decision, c C) {
	c = journal.Again(d.h.journal(), d.id, c)
	d.plan.Change(d.id, c, d.reason)
	d.actions = append(d.actions, c.String())
}

// mount is a change that ends with the mount namespace of the node.
func (d *decision) mount(m maker) {
	d.plan.Mount(d.id, m, d.reason)
	d.actions = append(d.actions, m.String())
}

// The subjects of the choices. Every plan has them, but for Bridge.
const (
	Images   = "images"
	Egress   = "egress"
	Services = "Services"
	Bridge   = "bridge"
	Eviction = "eviction"
)

// defaults are the choices for a machine without any blocker.
func (p *Plan) defaults(h *Host) {
	if h.backend != nil {
		p.Settings.Network.Egress.Backend = h.backend.String()
	}
	if h.kubeProxy != "" {
		p.Settings.Network.Services = h.kubeProxy
	}
	const upstream = "upstream's default"
	p.Choose(Images, fmt.Sprintf("%s in %s", p.Settings.Containerd.Snapshotter, p.Settings.Containerd.Root), "it works there")
	p.Choose(Egress, "masquerade by "+p.Settings.Network.Egress.Backend, "this kernel can")
	p.Choose(Services, "kube-proxy, "+p.Settings.Network.Services, "this kernel takes its rules and follows them")
	p.Choose(Eviction, "at less than 10 % of the disk, 15 % of that of images or 100 MiB of memory", upstream)
}

// Undo takes back what is recorded in the journal, the last one first. Where nothing
// is recorded it does nothing.
func Undo(j journal.Journal) error {
	var failures error
	for _, b := range slices.Backward(All()) {
		if b.Undo == nil {
			continue
		}
		if err := b.Undo(j, b.ID); err != nil {
			failures = errors.Join(failures, fmt.Errorf("undo %s: %w", b.ID, err))
		}
	}
	return failures
}
