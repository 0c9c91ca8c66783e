// How objects of ours pass through OpenMM's XmlSerializer.

#pragma once

#include "speculative_integrator.h"

#include <OpenMM.h>
#include <openmm/serialization/SerializationNode.h>
#include <openmm/serialization/SerializationProxy.h>

#include <string>
#include <typeinfo>

// As XML it is the CustomIntegrator that it is derived from, plus a property that only
// LSDIntegrator reads.
class CustomIntegratorProxy : public OpenMM::SerializationProxy {
public:
    explicit CustomIntegratorProxy(const OpenMM::SerializationProxy& original)
        : SerializationProxy(original.getTypeName()), original(original) {}

    void serialize(const void* object, OpenMM::SerializationNode& node) const override {
        const auto* integrator = static_cast<const SpeculativeIntegrator*>(
            static_cast<const OpenMM::Integrator*>(object));
        original.serialize(object, node);
        node.setStringProperty(SpeculativeIntegrator::property,
                               integrator->settings ? integrator->settings() : "");
    }

    void* deserialize(const OpenMM::SerializationNode& node) const override {
        return original.deserialize(node);
    }

private:
    const OpenMM::SerializationProxy& original;
};

// OpenMM's Python layer wraps what its XmlSerializer has made: the way for a class of ours to
// become an openmm.CustomIntegrator there.
class SpeculativeIntegratorProxy : public OpenMM::SerializationProxy {
public:
    static constexpr const char* name = "openmm_lsd.SpeculativeIntegrator";
    SpeculativeIntegratorProxy() : SerializationProxy(name) {}

    void serialize(const void*, OpenMM::SerializationNode&) const override {
        throw OpenMM::OpenMMException("Only the integrator that was made can be serialized");
    }

    void* deserialize(const OpenMM::SerializationNode& node) const override {
        OpenMM::Integrator* made = new SpeculativeIntegrator(node.getDoubleProperty("stepSize"));
        return made;
    }
};

// OpenMM's Python layer wraps what its XmlSerializer has made: the way to a Python object for a
// System that exists already. The object must be disowned at once.
class ExistingSystemProxy : public OpenMM::SerializationProxy {
public:
    static constexpr const char* name = "openmm_lsd.ExistingSystem";
    ExistingSystemProxy() : SerializationProxy(name) {}

    void serialize(const void*, OpenMM::SerializationNode&) const override {
        throw OpenMM::OpenMMException("A System is serialized as such");
    }

    void* deserialize(const OpenMM::SerializationNode& node) const override {
        return reinterpret_cast<void*>(std::stoull(node.getStringProperty("address")));
    }
};

inline void registerProxies() {
    using OpenMM::SerializationProxy;
    const SerializationProxy& custom =
        SerializationProxy::getProxy(typeid(OpenMM::CustomIntegrator));
    SerializationProxy::registerProxy(typeid(SpeculativeIntegrator),
                                      new CustomIntegratorProxy(custom));
    SerializationProxy::registerProxy(typeid(OpenMM::CustomIntegrator), &custom);
    SerializationProxy::registerProxy(typeid(SpeculativeIntegratorProxy),
                                      new SpeculativeIntegratorProxy);
    SerializationProxy::registerProxy(typeid(ExistingSystemProxy), new ExistingSystemProxy);
}
