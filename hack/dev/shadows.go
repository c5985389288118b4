package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"batchtask.dev/operator/api/v1alpha1"
)

// openState is what open-doors desires, and what a device that does it reports.
const openState = `{"state":"open"}`

// keepersOf returns those of the devices that look after their shadows.
func (d *demo) keepersOf(names []string) []string {
	var keepers []string
	for _, name := range names {
		if d.keepsShadow[name] {
			keepers = append(keepers, name)
		}
	}
	return keepers
}

// checkShadows waits until the devices have reported, connects the one that was
// offline, and looks at what is stored.
func (d *demo) checkShadows(ctx context.Context) error {
	connected := slices.DeleteFunc(d.keepersOf(d.expected["open-doors"]), func(name string) bool { return name == latecomer })
	if err := d.awaitReports(ctx, connected); err != nil {
		return err
	}
	d.out.line("  %-10s %s", latecomer, d.out.paint(dim, "(connects only now, when the task is over, and asks what it has missed)"))
	if err := d.fleet.Connect(ctx, latecomer); err != nil {
		return err
	}
	if err := d.awaitReports(ctx, []string{latecomer}); err != nil {
		return err
	}
	for _, message := range d.fleet.Dialog(latecomer) {
		direction := "→"
		if strings.HasPrefix(message.Topic, "$shadow/operation/result/") {
			direction = "←"
		}
		d.out.line("  %-10s %s %s", "", direction, d.out.paint(cyan, message.Topic))
		d.out.line("  %-10s   %s", "", message.Payload)
	}
	return d.checkStored(ctx)
}

// awaitReports draws how many of the devices have had their report answered, until
// all have: with the task's change it makes version 2 of the shadow.
func (d *demo) awaitReports(ctx context.Context, names []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("the devices have not reported within %s", patience))
	defer cancel()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	drawing := &bars{out: d.out}
	for {
		reported := 0
		for _, name := range names {
			if d.fleet.Shadow(name).Version >= 2 {
				reported++
			}
		}
		now := bar{name: "reports", phase: "Reporting", done: int64(reported), matched: int64(len(names))}
		if reported == len(names) {
			now.phase = "Done"
		}
		if len(names) > 1 {
			drawing.draw([]bar{now})
		}
		if reported == len(names) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-ticker.C:
		}
	}
}

// checkStored compares the shadows in the API with what the devices have done.
func (d *demo) checkStored(ctx context.Context) error {
	shadows, err := d.storedShadows(ctx)
	if err != nil {
		return err
	}
	d.out.line("  %s", d.out.paint(dim, "$ kubectl get device -o wide"))
	for _, name := range []string{"front-door", latecomer, "door-1"} {
		got := shadows[name]
		d.out.line("  %-10s version %d  desired %-16s  reported %s", name, got.Version, orNone(got.Desired), orNone(got.Reported))
	}
	want := map[string]v1alpha1.DeviceShadow{} // without the devices that have none
	for _, name := range d.expected["open-doors"] {
		want[name] = v1alpha1.DeviceShadow{Version: 1, Desired: openState}
	}
	keepers := d.keepersOf(d.expected["open-doors"])
	for _, name := range keepers {
		want[name] = v1alpha1.DeviceShadow{Version: 2, Reported: openState}
	}
	for name, got := range shadows {
		want := want[name]
		if got.Version != want.Version || got.Desired != want.Desired || got.Reported != want.Reported {
			return fmt.Errorf("the shadow of device %s is at version %d with desired %s and reported %s, want %d, %s and %s",
				name, got.Version, orNone(got.Desired), orNone(got.Reported), want.Version, orNone(want.Desired), orNone(want.Reported))
		}
	}
	d.out.good("%d devices report that they are open, and nothing is desired of them any more", len(keepers))
	return nil
}

// checkSecondRound looks at the shadows when open-doors was carried out a second
// time, and at what the first time has come to.
func (d *demo) checkSecondRound(ctx context.Context) error {
	shadows, err := d.storedShadows(ctx)
	if err != nil {
		return err
	}
	for _, name := range d.expected["open-doors"] {
		want := int64(2)
		if d.keepsShadow[name] {
			want = 3
		}
		if got := shadows[name].Version; got != want {
			return fmt.Errorf("the shadow of device %s is at version %d, want %d", name, got, want)
		}
	}
	d.out.good("every shadow is one version further, and a device that reports to be open already is sent nothing")
	return d.awaitAcknowledged(ctx)
}

// awaitAcknowledged waits until the task counts the devices that have reported,
// which it does every few seconds.
func (d *demo) awaitAcknowledged(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(250 * time.Millisecond)
	defer ticker.Stop()
	want := int64(len(d.keepersOf(d.expected["open-doors"])))
	for {
		task := &v1alpha1.BatchTask{}
		if err := d.env.Client.Get(ctx, client.ObjectKey{Namespace: d.env.Namespace, Name: "open-doors"}, task); err != nil {
			return fmt.Errorf("reading a task: %w", err)
		}
		got := task.Status.Counts()
		if got.Acknowledged == want {
			d.out.good("open-doors: %d devices matched, %d succeeded, %d have acknowledged", got.Matched, got.Succeeded, got.Acknowledged)
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d devices have acknowledged open-doors, want %d: %w", got.Acknowledged, want, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// storedShadows reads the shadows of all devices.
func (d *demo) storedShadows(ctx context.Context) (map[string]v1alpha1.DeviceShadow, error) {
	var devices v1alpha1.DeviceList
	if err := d.env.Client.List(ctx, &devices, client.InNamespace(d.env.Namespace)); err != nil {
		return nil, fmt.Errorf("reading the devices: %w", err)
	}
	shadows := map[string]v1alpha1.DeviceShadow{}
	for _, device := range devices.Items {
		shadows[device.Name] = v1alpha1.DeviceShadow{}
		if device.Status.Shadow != nil {
			shadows[device.Name] = *device.Status.Shadow
		}
	}
	return shadows, nil
}

func orNone(part string) string {
	if part == "" {
		return "(none)"
	}
	return part
}
