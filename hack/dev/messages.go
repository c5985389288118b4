package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"batchtask.dev/operator/hack/simulator"
	"batchtask.dev/operator/internal/shadow"
)

// checkDevices waits for what the devices should have, shows some of it, and
// checks all of it.
func (d *demo) checkDevices(ctx context.Context) error {
	if err := d.receiveMessages(ctx); err != nil {
		return err
	}
	for _, name := range []string{"front-door", "back-door", "door-1", "door-0001", "window-1"} {
		messages := d.fleet.Received(name)
		for _, message := range messages {
			d.out.line("  %-10s %s", name, d.out.paint(cyan, message.Topic))
			d.out.line("  %-10s %s", "", message.Payload)
		}
		switch {
		case len(messages) > 0:
		case name == latecomer:
			d.out.line("  %-10s %s", name, d.out.paint(dim, "(nothing: it is not connected)"))
		default:
			d.out.line("  %-10s %s", name, d.out.paint(dim, "(nothing: no filter matches it)"))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.expected)) {
		connected := len(d.expected[name])
		if slices.Contains(d.expected[name], latecomer) {
			connected--
		}
		d.out.good("%s: the %d connected devices it is for have their message, and no other device has", name, connected)
	}
	return nil
}

// receiveMessages waits until every device has what it should have, and checks
// that.
func (d *demo) receiveMessages(ctx context.Context) error {
	// A task is Done when the broker has taken every message; the devices get
	// them a moment later.
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("given up after %s", patience))
	defer cancel()
	groups := map[int64][]string{} // devices by the number of their messages
	for name, messages := range d.wanted() {
		count := int64(0)
		for _, times := range messages {
			count += int64(times)
		}
		groups[count] = append(groups[count], name)
	}
	for count, names := range groups {
		if err := d.fleet.Wait(ctx, names, count); err != nil {
			return err
		}
	}
	return d.checkMessages()
}

// wanted says, by device and message, how often it should have been received by
// now: for every round the message of the task that is for the device. That is a
// delta only while the device is connected, and only as long as it has not
// reported what is desired.
func (d *demo) wanted() map[string]map[string]int {
	wanted := map[string]map[string]int{}
	for task, names := range d.expected {
		for _, name := range names {
			wanted[name] = map[string]int{}
			for round := 1; round <= d.rounds; round++ {
				switch {
				case task != "open-doors":
					wanted[name][task]++
				case round == 1 && name != latecomer, !d.keepsShadow[name]:
					wanted[name][deltaMessage(round)]++
				}
			}
		}
	}
	return wanted
}

// checkMessages checks that each device has received what it should have, and
// nothing else. MQTT allows that it has one twice, with QoS 1.
func (d *demo) checkMessages() error {
	wanted := d.wanted()
	for _, name := range deviceNames(d.devices) {
		got := map[string]int{}
		for _, message := range d.fleet.Received(name) {
			what, err := messageOf(name, message)
			if err != nil {
				return err
			}
			if wanted[name][what] == 0 {
				return fmt.Errorf("device %s received a message of %s, which is not for it", name, what)
			}
			got[what]++
		}
		for what, times := range wanted[name] {
			if got[what] < times {
				return fmt.Errorf("device %s received %d messages of %s, want %d", name, got[what], what, times)
			}
		}
	}
	return nil
}

func deltaMessage(version int) string { return fmt.Sprintf("open-doors, version %d", version) }

// messageOf tells by its content which example a message comes from, and which
// version of the shadow it tells of.
func messageOf(device string, message simulator.Message) (string, error) {
	var delta struct {
		Type    string `json:"type"`
		Payload struct {
			State   map[string]any `json:"state"`
			Version int            `json:"version"`
		} `json:"payload"`
	}
	switch message.Topic {
	case productID + "/" + device + "/" + topic:
		if message.Payload == "close" {
			return "close-doors", nil
		}
	case shadow.ResultTopic(productID, device):
		if json.Unmarshal([]byte(message.Payload), &delta) == nil && delta.Type == "delta" && delta.Payload.State["state"] == "open" {
			return deltaMessage(delta.Payload.Version), nil
		}
	}
	return "", fmt.Errorf("device %s received %q on %s, which no task sends", device, message.Payload, message.Topic)
}
