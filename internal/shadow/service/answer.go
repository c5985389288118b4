package service

import (
	"context"
	"errors"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// The pause before a store is asked again doubles from the one to the other.
const (
	retryMin = 20 * time.Millisecond
	retryMax = 2 * time.Second
)

// answer carries a message out, while ctx allows it. The error says why the result is
// not 0.
func (s *Service) answer(ctx context.Context, d device, m shadow.Message) ([]byte, shadow.Result, error) {
	namespace, err := s.namespace(ctx, d.productID)
	if err != nil {
		return s.failure(m, err)
	}
	p := fleet.Product{Namespace: namespace, ProductID: d.productID}
	if m.Type == shadow.TypeGet {
		return s.get(ctx, p, d.name, m)
	}
	return s.update(ctx, p, d.name, m)
}

func (s *Service) failure(m shadow.Message, err error) ([]byte, shadow.Result, error) {
	result := shadow.ResultOf(err)
	if errors.Is(err, fleet.ErrDeviceGone) {
		result = shadow.ResultNoShadow
	}
	return shadow.AnswerError(m, result, s.now()), result, err
}

func (s *Service) namespace(ctx context.Context, productID string) (namespace string, err error) {
	err = s.retry(ctx, func() error {
		namespace, err = s.products.Namespace(ctx, productID)
		return err
	})
	if err == nil && namespace == "" {
		err = fleet.ErrDeviceGone // where there is no product there is no device of it
	}
	return namespace, err
}

func (s *Service) get(ctx context.Context, p fleet.Product, name string, m shadow.Message) ([]byte, shadow.Result, error) {
	var stored fleet.Shadow
	err := s.retry(ctx, func() (err error) {
		stored, err = s.store.ReadShadow(ctx, p, name)
		return err
	})
	if err != nil {
		return s.failure(m, err)
	}
	doc, err := stored.Document()
	if err != nil {
		return s.failure(m, err)
	}
	return shadow.AnswerGet(m, doc, s.now()), shadow.ResultOK, nil
}

func (s *Service) update(ctx context.Context, p fleet.Product, name string, m shadow.Message) ([]byte, shadow.Result, error) {
	var doc *shadow.Document
	var tried fleet.Shadow // what was last handed to the store
	change := func(was fleet.Shadow) (fleet.Shadow, error) {
		var err error
		if doc, err = was.Document(); err != nil {
			return fleet.Shadow{}, err
		}
		if tried.Version > 0 && was.Equal(tried) {
			// An attempt before this one was written, only the store's answer was lost. Made
			// again it would count twice, or fail for its version.
			return was, nil
		}
		if err := doc.Update(m.Update, s.clock.Now()); err != nil {
			return fleet.Shadow{}, err
		}
		tried = was.With(doc)
		return tried, nil
	}
	err := s.retry(ctx, func() error { return s.store.ChangeShadow(ctx, p, name, change) })
	switch {
	case errors.Is(err, shadow.ErrVersion):
		return shadow.AnswerVersion(m, doc, s.now()), shadow.ResultVersion, err
	case err != nil:
		return s.failure(m, err)
	default:
		return shadow.AnswerUpdate(m, doc, s.now()), shadow.ResultOK, nil
	}
}

// retry calls f until it succeeds, fails for good, or ctx ends.
func (s *Service) retry(ctx context.Context, f func() error) error {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		err := f()
		if !passing(err) || ctx.Err() != nil {
			return err
		}
		timer := s.clock.NewTimer(pause)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// passing says whether trying again may help: not where the message itself is
// refused, where there is no device, or where its shadow cannot be stored.
func passing(err error) bool {
	if shadow.ResultOf(err) != shadow.ResultInternal || errors.Is(err, fleet.ErrDeviceGone) || errors.Is(err, shadow.ErrLastVersion) {
		return false
	}
	_, final := errors.AsType[*fleet.DeviceError](err)
	return !final
}

// now is the time in Unix seconds.
func (s *Service) now() int64 { return s.clock.Now().Unix() }
