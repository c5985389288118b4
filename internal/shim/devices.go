package shim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/utils/clock"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/product"
	"batchtask.dev/operator/internal/qcloud"
	"batchtask.dev/operator/internal/shadow"
	"batchtask.dev/operator/internal/validation"
)

// Shadows are the shadows of devices, as they are at the moment.
type Shadows interface {
	// ReadShadow does what [fleet.Store] says.
	ReadShadow(ctx context.Context, p fleet.Product, name string) (fleet.Shadow, error)
	// ChangeShadow does what [fleet.Store] says.
	ChangeShadow(ctx context.Context, p fleet.Product, name string, change func(fleet.Shadow) (fleet.Shadow, error)) error
}

// devices carries out calls about single devices. Like [tasks] it keeps nothing.
type devices struct {
	products  product.Finder
	shadows   Shadows
	publisher Publisher // nil where there is no broker
	clock     clock.PassiveClock
}

// needsBroker reports whether the action sends messages.
func needsBroker(action string) bool {
	switch action {
	case qcloud.ActionUpdateDeviceShadow, qcloud.ActionPublish, qcloud.ActionPublishMessage:
		return true
	default:
		return false
	}
}

// get returns the whole shadow. A device that never had one has an empty one.
func (d devices) get(ctx context.Context, a account, request *qcloud.GetDeviceShadow) (qcloud.Result, error) {
	if _, err := d.product(ctx, a, request.Device); err != nil {
		return nil, err
	}
	stored, err := d.read(ctx, a, request.Device)
	if err != nil {
		return nil, err
	}
	doc, err := stored.Document()
	if err != nil {
		return nil, err
	}
	return qcloud.ShadowResult{Data: shadow.AnswerGet(shadow.Message{Type: shadow.TypeGet}, doc, d.now())}, nil
}

// update changes the desired part and tells the device what it has still to do. It
// asks once: a caller that gets an internal error finds with the shadow's version
// whether the change was made, and may make it again.
func (d devices) update(ctx context.Context, a account, request *qcloud.UpdateDeviceShadow) (qcloud.Result, error) {
	message := shadow.Message{Type: shadow.TypeUpdate}
	var err error
	if message.Update, err = shadow.ParseState(request.State); err != nil {
		return nil, d.refused(a, err, nil)
	}
	message.Update.Version = request.Version
	if _, err := d.product(ctx, a, request.Device); err != nil {
		return nil, err
	}
	doc, err := d.change(ctx, a, request.Device, message.Update)
	if err != nil {
		return nil, d.refused(a, err, doc)
	}
	if delta := shadow.DeltaMessage(doc, d.now()); delta != nil {
		topic := shadow.ResultTopic(request.ProductID, request.DeviceName)
		if err := publish(ctx, d.publisher, a.fleet(request.Device), topic, delta); err != nil {
			return nil, fmt.Errorf("the shadow of device %s/%s has version %d now, but the device was not told: %w", request.ProductID, request.DeviceName, doc.Version, err)
		}
	}
	return qcloud.ShadowResult{Data: shadow.AnswerUpdate(message, doc, d.now())}, nil
}

// change returns the shadow after the update, or as it is where the update is
// refused.
func (d devices) change(ctx context.Context, a account, device qcloud.Device, update shadow.Update) (*shadow.Document, error) {
	var doc *shadow.Document
	change := func(was fleet.Shadow) (fleet.Shadow, error) {
		var err error
		if doc, err = was.Document(); err != nil {
			return fleet.Shadow{}, err
		}
		if err := doc.Update(update, d.clock.Now()); err != nil {
			return fleet.Shadow{}, err
		}
		return was.With(doc), nil
	}
	for attempt := 0; ; attempt++ {
		err := d.shadows.ChangeShadow(ctx, a.fleet(device), device.DeviceName, change)
		// Others write this shadow too, or the object was just deleted: nothing was
		// written, so it can be tried as long as the call may take.
		if !errors.Is(err, fleet.ErrConflict) || pause(ctx, attempt) != nil {
			return doc, err
		}
	}
}

// publish sends a message to a device on one of its topics.
func (d devices) publish(ctx context.Context, a account, request *qcloud.Publish) (qcloud.Result, error) {
	topic, own := strings.CutPrefix(request.Topic, request.ProductID+"/"+request.DeviceName+"/")
	switch {
	case !own || !validation.TopicName(topic):
		return nil, qcloud.Errorf(qcloud.KindIllegalTopic, a.version.Parameter("topic"),
			"must be {%s}/{%s}/ and 1 to 128 letters, digits, ':', '_' and '-'", a.version.Parameter("productID"), a.version.Parameter("deviceName"))
	case len(request.Payload) > validation.MaxPayloadBytes:
		return nil, qcloud.Errorf(qcloud.KindPayloadTooLong, a.version.Parameter("payload"), "must have at most %d bytes", validation.MaxPayloadBytes)
	}
	p, err := d.product(ctx, a, request.Device)
	if err != nil {
		return nil, err
	}
	if allowed := p.Spec.Topics; len(allowed) > 0 && !slices.Contains(allowed, topic) {
		return nil, qcloud.Errorf(qcloud.KindIllegalTopic, a.version.Parameter("topic"), "the product's devices subscribe to %q only", allowed)
	}
	if _, err := d.read(ctx, a, request.Device); err != nil {
		return nil, err
	}
	if err := publish(ctx, d.publisher, a.fleet(request.Device), request.Topic, request.Payload); err != nil {
		return nil, err
	}
	return qcloud.PublishResult{}, nil
}

// product returns the account's product. One that is not Ready, because its ID belongs
// to another namespace, say, is an internal error as it is with tasks.
func (d devices) product(ctx context.Context, a account, device qcloud.Device) (*v1alpha1.Product, error) {
	switch {
	case !validation.ProductID(device.ProductID):
		return nil, qcloud.Errorf(qcloud.KindInvalidValue, a.version.Parameter("productID"), "must be 1 to 32 letters and digits")
	case !validation.DeviceName(device.DeviceName):
		return nil, qcloud.Errorf(qcloud.KindInvalidValue, a.version.Parameter("deviceName"), "must be 1 to 48 letters, digits, ':', '_' and '-'")
	}
	p, err := d.products.Lookup(ctx, a.namespace, device.ProductID)
	switch {
	case err != nil:
		return nil, err
	case p == nil:
		return nil, qcloud.Errorf(qcloud.KindDeviceNotExist, a.version.Parameter("productID"), "there is no product with this ID")
	case !product.Ready(p):
		return nil, fmt.Errorf("product %s/%s is not Ready", p.Namespace, p.Name)
	default:
		return p, nil
	}
}

// read returns the shadow of a device of a product that the account has.
func (d devices) read(ctx context.Context, a account, device qcloud.Device) (fleet.Shadow, error) {
	stored, err := d.shadows.ReadShadow(ctx, a.fleet(device), device.DeviceName)
	if errors.Is(err, fleet.ErrDeviceGone) {
		return fleet.Shadow{}, noDevice(a)
	}
	return stored, err
}

// refused turns the refusal of a change into what the caller is told; doc is the
// shadow that it was to be made to.
func (d devices) refused(a account, err error, doc *shadow.Document) error {
	switch result := shadow.ResultOf(err); {
	case errors.Is(err, fleet.ErrDeviceGone):
		return noDevice(a)
	case errors.Is(err, shadow.ErrIncomplete):
		return qcloud.Errorf(qcloud.KindStateIncomplete, a.version.Parameter("state"), "%w", err)
	case result == shadow.ResultVersion:
		refusal := qcloud.Errorf(qcloud.KindVersionMismatch, a.version.Parameter("version"), "%w", err)
		refusal.Data = shadow.AnswerVersion(shadow.Message{Type: shadow.TypeUpdate}, doc, d.now())
		return refusal
	default:
		kind, known := stateKinds[result]
		if !known {
			return err
		}
		return qcloud.Errorf(kind, a.version.Parameter("state"), "%w", err)
	}
}

// stateKinds are what is wrong with a state, by what a device would be told of it.
var stateKinds = map[shadow.Result]qcloud.Kind{
	shadow.ResultTooDeep:     qcloud.KindStateTooDeep,
	shadow.ResultIllegalNode: qcloud.KindStateIllegalNode,
	shadow.ResultNotJSON:     qcloud.KindStateNotJSON,
	shadow.ResultTooLarge:    qcloud.KindStateTooLarge,
}

// fleet names the account's product that a device is of.
func (a account) fleet(device qcloud.Device) fleet.Product {
	return fleet.Product{Namespace: a.namespace, ProductID: device.ProductID}
}

func noDevice(a account) error {
	return qcloud.Errorf(qcloud.KindDeviceNotExist, a.version.Parameter("deviceName"), "the product has no device of this name")
}

// now is the time in Unix seconds.
func (d devices) now() int64 { return d.clock.Now().Unix() }
